"""Every number in the README comes from a recorded run."""

from __future__ import annotations

import re

import pytest

from benchmarks import readme_table

README = (readme_table.ROOT / "README.md").read_text()


def test_table_is_the_recorded_runs():
    assert readme_table.with_table(README) == README, "run: python -m benchmarks.readme_table"


def test_every_source_exists():
    named = re.findall(r"benchmarks/results/[\w.]+\.json", README)
    assert named
    for name in named:
        assert (readme_table.ROOT / name).is_file(), name


def test_no_measured_number_outside_the_table():
    head, _, rest = README.partition(readme_table.BEGIN)
    tail = rest.partition(readme_table.END)[2]
    measured = r"\d[\d.]*\s*(×|x faster|ms\b|µs\b|%|GB/s|images/s)"
    assert re.findall(measured, head + tail) == []


def test_the_check_finds_a_changed_number():
    changed = re.sub(r"\d ms", "9 ms", README, count=1)
    if changed == README:
        pytest.fail("the README's table has no time in it")
    assert readme_table.with_table(changed) != changed


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_names_the_two_commands(command):
    assert command in README


def test_first_screen_is_the_results():
    assert README.index(readme_table.BEGIN) < README.index("import torch, fastard") < 6000
