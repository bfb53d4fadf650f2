"""An evaluation that is killed goes on; several processes give one process's result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastard import data, models
from fastard.evaluate import EvaluateConfig, evaluate_checkpoint
from fastard.evaluation.attacks import Setting
from fastard.evaluation.journal import Journal
from fastard.evaluation.run import Evaluation
from fastard.progress import QUIET

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "net.safetensors"
    models.save(
        path, models.build("small_cnn-4", 10, in_channels=1, image_size=8), name="small_cnn-4",
        in_channels=1, image_size=8,
    )  # fmt: skip
    return path


def config(checkpoint, **options):
    settings = {"data": "digits", "n": 30, "batch_size": 7, "eps": 0.1, **options}
    return EvaluateConfig(checkpoint=checkpoint, **settings)


def of_the_verdicts(result):
    return {k: v for k, v in result.items() if k not in ("seconds", "batch_size")}


class Killed(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("after", [1, 4, 9, 20])
def test_a_run_that_ends_anywhere_goes_on_without_repeating_a_verdict(
    checkpoint, monkeypatch, after
):
    whole = evaluate_checkpoint(config(checkpoint, out=checkpoint.parent / "a.json"), QUIET)
    out, own = checkpoint.parent / "b.json", Evaluation._judge
    calls: list[tuple[str, tuple[int, ...]]] = []

    def dying(self, attack, key, rows):
        if len(calls) == after:
            raise Killed
        calls.append((key, tuple(rows.tolist())))
        own(self, attack, key, rows)

    monkeypatch.setattr(Evaluation, "_judge", dying)
    with pytest.raises(Killed):
        evaluate_checkpoint(config(checkpoint, out=out), QUIET)
    monkeypatch.setattr(Evaluation, "_judge", own)
    seen = list(calls)

    def counting(self, attack, key, rows):
        calls.append((key, tuple(rows.tolist())))
        own(self, attack, key, rows)

    monkeypatch.setattr(Evaluation, "_judge", counting)
    # Another batch size may finish what the first began.
    resumed = evaluate_checkpoint(config(checkpoint, out=out, batch_size=11), QUIET)
    samples = [(key, i) for key, ids in calls for i in ids]
    assert len(samples) == len(set(samples)) == 5 * 30 and calls[: len(seen)] == seen
    assert of_the_verdicts(resumed) == of_the_verdicts(whole)
    assert list(checkpoint.parent.glob(".b.json*")) == []


def test_a_process_killed_in_the_middle_leaves_what_can_be_gone_on_from(checkpoint):
    out = checkpoint.parent / "k.json"
    command = [sys.executable, "-m", "fastard", "evaluate", "--checkpoint", str(checkpoint)]
    command += ["--data", "digits", "--batch-size", "4", "--eps", "0.1", "--out", str(out)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    journal = checkpoint.parent / ".k.json.part-0.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists() and journal.exists()
    lines = journal.read_text().rpartition("\n")[0].splitlines()
    kept = sum(len(json.loads(line)["ids"]) for line in lines[1:])
    settings = {"data": "digits", "eps": 0.1, "batch_size": 200}
    held = Journal(out, json.loads(lines[0]))
    assert sum(len(block["ids"]) for block in held.blocks) == kept
    resumed = evaluate_checkpoint(EvaluateConfig(checkpoint=checkpoint, out=out, **settings), QUIET)
    fresh = evaluate_checkpoint(
        EvaluateConfig(checkpoint=checkpoint, out=checkpoint.parent / "f.json", **settings), QUIET
    )
    assert of_the_verdicts(resumed) == of_the_verdicts(fresh)


def test_a_torn_line_is_cut_and_another_evaluations_journal_refused(tmp_path):
    about = {"suite": "basic", "eps": 0.1}
    out = tmp_path / "r.json"
    journal = Journal(out, about)
    journal.add({"attack": "clean", "ids": [0, 1]})
    path = tmp_path / ".r.json.part-0.jsonl"
    with path.open("a") as file:
        file.write('{"attack": "clean", "ids": [2')
    again = Journal(out, about)
    assert [block["ids"] for block in again.blocks] == [[0, 1]]
    again.add({"attack": "clean", "ids": [2, 3]})
    assert [b["ids"] for b in Journal(out, about).blocks] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="unfinished evaluation with another eps"):
        Journal(out, {"suite": "basic", "eps": 0.2})
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_processes_that_share_the_blocks_give_the_one_process_result(tmp_path):
    images = data.load("digits").test.first(30)
    torch.manual_seed(0)
    net = models.build("small_cnn-4", 10, in_channels=1, image_size=8).eval()
    setting = Setting(net, eps=0.1)
    alone = Evaluation(setting, images, "basic", batch_size=7)
    alone.go()
    out = tmp_path / "r.json"
    for rank in range(3):
        part = Evaluation(
            setting, images, "basic", batch_size=7, journal=Journal(out, {}, rank), rank=rank,
            world=3,
        )  # fmt: skip
        part.go()
        assert sum(len(b["ids"]) for b in part.blocks if b["attack"] == "clean") <= 30
    part.journal.again()
    assert of_the_verdicts(part.result()) == of_the_verdicts(alone.result())


def test_workers_of_the_command_line(checkpoint):
    one = evaluate_checkpoint(config(checkpoint, out=checkpoint.parent / "one.json"), QUIET)
    two = evaluate_checkpoint(
        config(checkpoint, out=checkpoint.parent / "two.json", workers=2), QUIET
    )
    assert of_the_verdicts(two) == of_the_verdicts(one)
    assert (checkpoint.parent / "two.md").exists() and (checkpoint.parent / "two.html").exists()
    with pytest.raises(ValueError, match="workers"):
        evaluate_checkpoint(config(checkpoint, workers=0), QUIET)
