"""The AutoAttack benchmark in small: agreement and speed are measured, and the tables made."""

from __future__ import annotations

import json

import pytest

from benchmarks import autoattack, autoattack_speed, autoattack_table
from benchmarks.autoattack_agreement import ATTACKS, agreement
from fastard.autoattack import referee
from tests.autoattack.official_case import tiny_case

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.skipif(
        referee.installed() is None, reason="no official package: pip install pyautoattack"
    ),
]
QUERIES = 40


def part(found: dict, kind: str) -> dict:
    return {"part": f"{kind}-tiny", "kind": kind, "took_seconds": 1.0, "idle": 0.9} | found


@pytest.fixture(scope="module")
def run():
    """Everything on a tiny network."""
    case = tiny_case(n=8)
    parts = [part(agreement(case, attack, QUERIES), "agreement") for attack in ATTACKS]
    parts.append(part(autoattack_speed.standard(case, QUERIES), "speed"))
    parts.append(part(autoattack_speed.apgd_alone(case, rounds=1), "apgd"))
    environment = {"cpu": "Some CPU", "threads": 2, "isa": "avx2", "torch": "2.15"}
    return {"environment": environment, "parts": parts}


def test_the_verdicts_agree(run):
    for found in run["parts"][:4]:
        assert found["modes"]["eager"]["differing"] == [], found["attack"]
        assert found["modes"]["engine"]["agrees"], found["attack"]
        assert found["seconds"]["official"] > 0 and found["clean"] == 6


def test_the_speed_is_told_by_parts(run):
    found = run["parts"][4]
    assert found["agrees"] and found["target"] is None
    assert found["ratio"] == pytest.approx(
        found["seconds"]["official"] / found["seconds"]["fastard"], rel=0.2
    )
    assert 0 < found["seconds"]["passes_alone"] < 2 * found["seconds"]["fastard"]
    assert set(found["parts"]) <= set(ATTACKS) and found["parts"]
    passes = found["per_robust_sample"]["official"]
    assert passes["forwards"] > passes["gradients"] > 300
    assert run["parts"][5]["agrees"]


def test_the_tables_are_made_from_the_record(run, tmp_path):
    assert autoattack_table.paragraphs(tmp_path, "results") == autoattack_table.NONE
    (tmp_path / autoattack_table.NAME).write_text(json.dumps(run))
    text = autoattack_table.paragraphs(tmp_path, "results")
    for title in autoattack_table.TITLES.values():
        assert title in text
    assert "| tiny, Linf 5.1/255 | " in text and f"0 / 0, {QUERIES} queries" in text
    assert "`make bench-autoattack` on Some CPU, 2 threads" in text
    assert [line for found in run["parts"] for line in autoattack_table.told(found)]
    run["parts"][0]["modes"]["eager"] |= {"differing": [3, 5], "agrees": False}
    assert "2 (image 3, 5), too many / " in "\n".join(autoattack_table.agreement_rows(run))
    run["parts"][4] |= {"target": 3.0, "reached": False, "ratio": 2.0}
    run["parts"][4]["seconds"] |= {"official": 5.0, "passes_alone": 2.0}
    assert "2.00× (target 3×, not reached; the passes alone: 2.50×)" in "\n".join(
        autoattack_table.speed_rows(run)
    )


def test_a_part_runs_in_its_own_process_once(monkeypatch, tmp_path, capsys):
    started = []

    class Process:
        returncode = 0

        def poll(self):
            return 0

    def start(name, args, threads):
        started.append((name, threads))
        found = {"differing": [], "agrees": True, "times_faster_than": {}, "robust": {}}
        (args.scratch / f"{name}.json").write_text(json.dumps(part(found, "apgd")))
        return Process()

    monkeypatch.setattr(autoattack, "_start", start)
    arguments = ["--data", "d", "--only", "apgd-", "--scratch", str(tmp_path / "s"), "--threads",
                 "1", "--out", str(tmp_path / "out.json")]  # fmt: skip
    assert autoattack.main(arguments) == 0
    assert started == [("apgd-resnet4b-Linf", 1), ("apgd-cnn_a-Linf", 1)]
    assert len(json.loads((tmp_path / "out.json").read_text())["parts"]) == 2
    assert autoattack.main(arguments) == 0 and len(started) == 2
    Process.returncode = 1
    assert autoattack.main([*arguments, "--again"]) == 1
    assert "FAILED with exit status 1" in capsys.readouterr().out


def test_every_part_can_be_named_and_a_folder_is_needed(monkeypatch, capsys):
    assert len(autoattack.PARTS) == len({*autoattack.AGREEMENT, *autoattack.SPEED}) == 25
    monkeypatch.delenv("FASTARD_DATA", raising=False)
    with pytest.raises(SystemExit):
        autoattack.main([])
    assert "--data must name the folder" in capsys.readouterr().err
