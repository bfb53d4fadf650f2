"""The README's first table from a recorded result of the benchmarks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks import bench_table, readme_table, record_file
from benchmarks.record import Target

EXAMPLE = Path(__file__).with_name("example.jsonl")


@pytest.fixture
def run() -> record_file.Run:
    """The example with resnet18 in bf16 too: half the seconds, a bound that is missed."""
    run = record_file.read(EXAMPLE)
    for result in [r for r in run.results if r.case == "pgd-kl resnet18 fp32 b32" and r.seconds]:
        took = dataclasses.replace(result.seconds, min=result.seconds.min / 2)
        floor = result.floor_seconds and result.floor_seconds / 2
        half = {"precision": "bf16", "seconds": took, "floor_seconds": floor}
        run.results.append(dataclasses.replace(result, case="bf16 too", **half))
    loop = next(r for r in run.results if r.case == "bf16 too" and r.who.startswith("published"))
    run.targets.append(Target("b", "times faster", "least", 5.0, loop.ratio, False, "bf16 too"))
    return run


def test_one_row_a_network_with_every_precision(run):
    (network,) = bench_table.networks(run)
    assert (network["model"], network["batch"], network["steps"]) == ("resnet18", 32, 10)
    assert network["seconds"]["published"] == {"min": 2.95}
    assert network["seconds"]["fastard bf16"] == {"min": 2.31 / 2}


def test_rows_say_ratios_bounds_and_verdicts(run):
    text = "\n".join(readme_table.attack_lines({}, run))
    assert "| resnet18, batch 32 | 2.95 s | 2.62 s; 1.31 s in bf16 |" in text
    assert "2.31 s: 1.28× the loop (target 1.25); 1.09 of the floor's time" in text
    assert "(target 5, not reached; the floor itself: 2.78×)" in text
    assert "bench_cpu.jsonl" in text and "Example CPU, 2 threads, avx512, torch 2.15.0" in text


def test_nothing_is_shown_of_what_was_not_measured(run):
    for index, result in enumerate(run.results):
        if result.who == "fastard" and result.precision == "bf16":
            run.results[index] = dataclasses.replace(result, seconds=None, status="failed")
    assert bench_table.networks(run) == []


def test_a_recorded_result_takes_the_table(run, tmp_path):
    assert bench_table.recorded(tmp_path) is None
    assert bench_table.picture(tmp_path, "results") == []
    (tmp_path / bench_table.FILE).write_text(EXAMPLE.read_text())
    (tmp_path / "bench_cpu" / "png").mkdir(parents=True)
    (tmp_path / "bench_cpu" / "png" / "attack-cpu-fp32.png").write_bytes(b"")
    assert bench_table.recorded(tmp_path).targets == record_file.read(EXAMPLE).targets
    assert (
        "(results/bench_cpu/png/attack-cpu-fp32.png)" in bench_table.picture(tmp_path, "results")[0]
    )
