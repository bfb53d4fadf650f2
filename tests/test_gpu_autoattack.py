"""The GPU check's short AutoAttack, run on the CPU at a small size."""

from __future__ import annotations

import pytest

from benchmarks import gpu_autoattack, gpu_summary


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(gpu_autoattack, "STEPS", 4)
    monkeypatch.setattr(gpu_autoattack, "QUERIES", 12)
    monkeypatch.setattr(gpu_autoattack, "ROUNDS", 1)


@pytest.fixture(params=["official package", "our official mode"])
def measured(request, monkeypatch):
    if request.param == "official package":
        pytest.importorskip("pyautoattack", reason="pyautoattack is not installed")
    else:

        def absent(*_):
            raise ImportError

        monkeypatch.setattr(gpu_autoattack, "official_attack", absent)
    return gpu_autoattack.measure("cpu", images=6, network="small_cnn-16")


def test_both_sides_are_timed_and_agree(measured):
    who = measured["published"]
    assert set(measured["seconds"]) == {who, "fastard", "fastard, no graphs"}
    assert all(seconds > 0 for seconds in measured["seconds"].values())
    assert measured["failures"] == [] and set(measured["robust"]) == set(measured["seconds"])
    (target,) = measured["targets"]
    assert target["value"] == measured["seconds"][who] / measured["seconds"]["fastard"]
    assert target["reached"] == (target["value"] >= gpu_autoattack.LEAST)
    record = {"autoattack": {"cases": {"short": measured}}}
    assert target in gpu_summary.targets(record)


def test_differing_verdicts_are_a_failure(monkeypatch):
    answers = iter([[True] * 6, [True] * 6, [False] * 6] * 2)
    monkeypatch.setattr(
        gpu_autoattack, "surviving", lambda net, x, y: (y == y) & y.new_tensor(next(answers)).bool()
    )
    found = gpu_autoattack.measure("cpu", images=6, network="small_cnn-16")
    assert found["differing"]["fastard, no graphs"] == 6 and len(found["failures"]) == 1
    assert "differs from" in found["failures"][0]
