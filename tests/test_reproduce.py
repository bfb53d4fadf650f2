"""The methods' comparison: its statistics, and a small run of it on real images."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import reproduce, reproduce_protocol, reproduce_run, reproduce_table
from fastard import methods

RECORD = Path(__file__).parents[1] / "benchmarks" / "results" / "reproduce_cpu.json"


def made_run(label: str, seed: int, robust: np.ndarray) -> dict:
    bits = np.packbits(robust).tobytes().hex()
    everything = np.packbits(np.ones_like(robust)).tobytes().hex()
    survived = {"clean": everything, "pgd20": bits, "cw30": everything}
    return {
        "label": label, "student": "net", "seed": seed, "test_n": len(robust), "survived": survived,
        "train_seconds": 60.0, "evaluation_seconds": 30.0,
    }  # fmt: skip


def some(share: float, seed: int, count: int = 1001) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < share


def test_means_are_over_seeds_and_worst_is_over_attacks():
    a, b = some(0.4, 1), some(0.6, 2)
    (line,) = reproduce_table.rows([made_run("rslad", 0, a), made_run("rslad", 1, b)])
    shares = 100 * np.array([a.mean(), b.mean()])
    assert (line["seeds"], line["clean"]) == (2, 100)
    assert line["robust"] == line["pgd20"] == pytest.approx(shares.mean(), abs=0.01)
    assert line["robust_std"] == pytest.approx(shares.std(ddof=1), abs=0.01)


def test_a_clear_difference_is_resolved_and_none_is_not():
    runs = [made_run("rslad", s, some(0.5, s)) for s in range(3)]
    runs += [made_run("pgd-at", s, some(0.4, 10 + s)) for s in range(3)]
    runs += [made_run("trades", s, some(0.5, 20 + s)) for s in range(3)]
    clear = reproduce_table.difference(runs, "net", "rslad", "pgd-at")
    assert clear["resolved"] and clear["low"] < clear["points"] < clear["high"]
    assert clear["points"] == pytest.approx(10, abs=3)
    assert "is reached" in reproduce_table.sentence(clear)
    none = reproduce_table.difference(runs, "net", "rslad", "trades")
    assert not none["resolved"] and "unresolved" in reproduce_table.sentence(none)
    assert reproduce_table.difference(runs, "net", "ard", "trades") is None


def test_pairing_narrows_the_interval():
    base = some(0.5, 0, 2000)
    better = base | some(0.05, 1, 2000)
    paired = [made_run("rslad", 0, better), made_run("trades", 0, base)]
    apart = [made_run("rslad", 0, some(better.mean(), 3, 2000)), made_run("trades", 0, base)]
    widths = []
    for runs in (paired, apart):
        found = reproduce_table.difference(runs, "net", "rslad", "trades")
        widths.append(found["high"] - found["low"])
    assert widths[0] < 0.5 * widths[1]


@pytest.mark.parametrize("row", reproduce_protocol.ROWS, ids=lambda row: row.label)
def test_every_row_is_a_method_with_options_that_it_knows(row):
    kind = methods.registry.METHODS[methods.preset(row.method).method]
    kind.require_teachers(row.teachers)
    kind.known(dict(row.options))


def test_only_whole_seeds_enter_the_table(tmp_path):
    protocol = reproduce_protocol.PROTOCOLS["cpu"]
    specs = reproduce.specifications(protocol, "cpu", "x", [("a", "b")], 2, ["natural", "trades"])
    names = [reproduce.file_name(spec) for spec in specs]
    assert len(names) == 4
    for spec, name in list(zip(specs, names, strict=True))[:3]:
        run = made_run(spec["label"], spec["seed"], some(0.5, 1))
        (tmp_path / name).write_text(json.dumps(run))
    made = reproduce.record(specs, tmp_path, protocol, 1.0)
    assert made["run_minutes"] == 3.0
    assert made["seeds"] == [0] and [line["seeds"] for line in made["rows"]] == [1, 1]


def test_a_finished_run_of_another_protocol_is_refused(tmp_path):
    protocol = reproduce_protocol.PROTOCOLS["cpu"]
    (spec,) = reproduce.specifications(protocol, "cpu", "x", [("a", "/b/c.pt")], 1, ["rslad"])
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"spec": reproduce_run.recorded(spec)}))
    reproduce.require_same(spec | {"data_root": "y", "teachers": [("a", "/d/c.pt")]}, file)
    with pytest.raises(SystemExit, match="was made with train_n 20000, not train_n 256: name"):
        reproduce.require_same(spec | {"train_n": 256}, file)
    with pytest.raises(SystemExit, match="but .*run.json was made with teachers "):
        reproduce.require_same(spec | {"teachers": [("a", "/b/other.pt")]}, file)
    file.write_text("{}")
    with pytest.raises(SystemExit, match="does not say how it was made"):
        reproduce.require_same(spec, file)


def test_minutes_add_up_over_calls(tmp_path):
    assert reproduce.spent(tmp_path, 90) == 1.5
    assert reproduce.spent(tmp_path, 30) == 2.0


def test_bad_input_is_one_sentence(tmp_path):
    given = ["--data-root", str(tmp_path), "--runs", str(tmp_path / "runs")]
    with pytest.raises(SystemExit, match="--data-root must hold cifar-10-batches-py, but '.*' doe"):
        reproduce.main(given)
    with pytest.raises(SystemExit, match="--seeds must be at least 1, but is 0."):
        reproduce.main([*given, "--seeds", "0"])
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_leaves_its_errors(tmp_path):
    protocol = reproduce_protocol.PROTOCOLS["cpu"]
    (spec,) = reproduce.specifications(protocol, "cpu", str(tmp_path), [], 1, ["natural"])
    deadline = time.monotonic() + 60
    with pytest.raises(SystemExit, match="conv3-natural-0.json failed, see .*: .*Error"):
        reproduce.run_all([spec], tmp_path, 1, deadline, Console(quiet=True))
    assert "Traceback" in reproduce.errors_of(spec, tmp_path).read_text()


def test_a_method_that_wants_more_teachers_is_refused():
    protocol = reproduce_protocol.PROTOCOLS["cpu"]
    with pytest.raises(SystemExit, match="--teacher must be given 1 times for rslad, but was"):
        reproduce.specifications(protocol, "cpu", "x", [], 1, ["rslad"])


def test_a_small_run_writes_its_table_and_is_not_run_twice(cifar_root, data_root, tmp_path):
    teacher = data_root / "teachers" / "cifar10_resnet4b_robust_2over255.pth"
    command = [
        *(sys.executable, "-m", "benchmarks.reproduce", "--data-root", str(cifar_root)),
        *("--teacher", f"resnet4b={teacher}", "--runs", str(tmp_path), "--methods", "rslad"),
        *("--epochs", "1", "--train-n", "256", "--test-n", "50", "--seeds", "1"),
    ]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    made = json.loads((tmp_path / "reproduce.json").read_text())
    assert made["rows"][0]["label"] == "rslad" and made["runs"][0]["test_n"] == 50
    assert "| conv3 | rslad (method `rslad-batchmean`: divided by the batch) | 1 |" in first.stdout
    assert made["runs"][0]["spec"]["train_n"] == 256 and not list(tmp_path.glob("*.log"))
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "rslad seed 0" not in again.stdout and "| conv3 | rslad (method" in again.stdout


@pytest.mark.skipif(not RECORD.exists(), reason="no comparison is recorded yet")
def test_the_recorded_table_follows_from_its_verdicts():
    made = json.loads(RECORD.read_text())
    assert made["rows"] == reproduce_table.rows(made["runs"])
    assert made["pairs"] == reproduce_table.pairs(made["runs"])
    page = (Path(__file__).parents[1] / "docs" / "reproduction.md").read_text()
    assert reproduce_table.markdown(made) in page
