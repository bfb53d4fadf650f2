"""Training with the engine and without: the recorded comparison, and how its noise is counted."""

from __future__ import annotations

import json

import pytest

from benchmarks import engine_training, training_table
from benchmarks.readme_table import RESULTS, ROOT

RECORD = json.loads((ROOT / RESULTS / training_table.ENGINE).read_text())


def test_the_record_is_whole_and_its_figures_follow_from_its_seeds():
    assert RECORD["complete"] and len({row["seed"] for row in RECORD["seeds"]}) >= 3
    assert RECORD["accuracy"] == engine_training.summary(RECORD["seeds"])


def test_one_arm_ran_compiled():
    assert RECORD["engine"].startswith("compiled")


@pytest.mark.parametrize("name", engine_training.ACCURACIES)
def test_the_difference_lies_within_the_noise(name):
    found = RECORD["accuracy"][name]
    assert found["within_noise"] and abs(found["difference"]) <= found["noise"]


def test_the_students_withstand_something():
    for row in RECORD["seeds"]:
        for arm in engine_training.ARMS:
            assert row[arm]["clean"] > 95 and 60 < row[arm]["pgd20"] < row[arm]["clean"]


def seeds(*pairs: tuple[float, float]) -> list[dict]:
    return [{"engine": {"clean": 99.0, "pgd20": a}, "eager": {"clean": 99.0, "pgd20": b}}
            for a, b in pairs]  # fmt: skip


def test_noise_is_the_paired_intervals_half_width():
    found = engine_training.summary(seeds((81, 80), (82, 80), (83, 80)))["pgd20"]
    assert (found["mean"], found["difference"]) == ({"engine": 82, "eager": 80}, 2)
    assert found["difference_spread"] == 1 and found["noise"] == pytest.approx(2.484, abs=1e-3)
    assert found["within_noise"]
    assert not engine_training.summary(seeds((83, 80), (84, 80), (83, 80)))["pgd20"]["within_noise"]
    same = engine_training.summary(seeds((80, 80), (81, 81), (82, 82)))["pgd20"]
    assert same["within_noise"] and same["noise"] == 0
