"""A result names every target, also those that other suites measure."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from benchmarks import bench, declared, record_file
from benchmarks.report import html
from benchmarks.report.contents import document
from tests.bench.page_reader import Page

EXAMPLE = Path(__file__).with_name("example.jsonl")


def test_targets_of_other_suites_stand_in_the_report(tmp_path):
    here = record_file.read(EXAMPLE).environment
    cpu = declared.of_suite("cpu")
    console = Console(file=io.StringIO())
    path = tmp_path / "bench.jsonl"
    bench.measure([], path, here, None, console, elsewhere=declared.elsewhere(cpu))
    rows = Page(html.page(document(record_file.read(path)))).tables["targets-elsewhere"].rows
    assert {row[1] for row in rows} == {"not measured here"}
    assert any("resnet18 bf16 b128 gpu" in row[0] and "8" in row for row in rows)
    assert all("measured by suite" in " ".join(row) for row in rows)


def test_no_target_is_left_out():
    everything, cpu = declared.everything(), declared.of_suite("cpu")
    own = sum(len(case.bounds) for case in cpu)
    elsewhere = list(declared.elsewhere(cpu))
    assert own and elsewhere
    assert own + len(elsewhere) == sum(len(case.bounds) for case in everything)
    assert all(target.reached is None and target.value is None for target in elsewhere)
