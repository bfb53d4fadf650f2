"""An evaluation that is killed goes on; several processes give one process's result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

import fastard
from fastard import data, models
from fastard.evaluate import EvaluateConfig, evaluate_checkpoint
from fastard.evaluation import journal as journal_module
from fastard.evaluation.attacks import Setting
from fastard.evaluation.journal import Journal, images_digest
from fastard.evaluation.run import Evaluation
from fastard.progress import QUIET
from fastard.training import ranks

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


@pytest.mark.parametrize(("n", "batch_size", "world"), [(30, 256, 3), (29, 7, 2), (2, 256, 3)])
def test_every_process_gets_as_many_samples(n, batch_size, world):
    setting = Setting(models.build("small_cnn-4", 10, in_channels=1, image_size=8))
    shares = []
    for rank in range(world):
        part = Evaluation(
            setting, data.load("digits").test, "basic", n, batch_size, rank=rank, world=world
        )
        blocks = list(part._mine(set()))
        assert all(len(rows) <= batch_size for rows in blocks)
        shares.append([i for rows in blocks for i in rows.tolist()])
    assert sorted(i for share in shares for i in share) == list(range(n))
    rounds = -(-n // (batch_size * world))
    assert max(map(len, shares)) <= rounds * -(-n // (rounds * world))


def test_a_process_that_is_done_waits_as_long_as_another_may_take(checkpoint, monkeypatch):
    made, asked = [], []
    for name, value in (("is_initialized", True), ("get_rank", 0), ("get_world_size", 2)):
        monkeypatch.setattr(ranks.dist, name, lambda value=value: value)
    monkeypatch.setattr(ranks.dist, "new_group", lambda **options: made.append(options))
    week = timedelta(days=7)
    ranks.Ranks(timeout=week)
    assert made == [{"backend": "gloo", "timeout": week}]
    monkeypatch.undo()

    def counted(timeout=None):
        asked.append(timeout)
        return ranks.Ranks(timeout)

    monkeypatch.setattr("fastard.evaluate.Ranks", counted)
    evaluate_checkpoint(config(checkpoint, n=2), QUIET)
    assert asked == [week]


def test_another_network_or_other_images_are_another_evaluation(checkpoint, monkeypatch):
    def dying(self, attack, key, rows):
        raise Killed

    about = []
    monkeypatch.setattr(Evaluation, "_judge", dying)

    def kept(out, found, rank):
        about.append(found)
        return Journal(out.with_name(f"{len(about)}.json"), found, rank)

    monkeypatch.setattr("fastard.evaluate.Journal", kept)
    for n in (30, 29, 30):
        with pytest.raises(Killed):
            evaluate_checkpoint(config(checkpoint, n=n), QUIET)
    assert about[0] == about[2] and about[0]["model"] == "small_cnn-4"
    assert about[0]["images"] != about[1]["images"] and about[0]["surrogate_model"] is None
    images = data.load("digits").test.first(30)
    assert images_digest(images) == about[0]["images"]
    x, y = images.x.clone(), images.y.clone()
    x[3, 0, 0, 0] ^= 1
    y[4] ^= 1
    spoiled = {images_digest(data.Images(x, images.y)), images_digest(data.Images(images.x, y))}
    assert len(spoiled | {about[0]["images"]}) == 3
    assert Journal(checkpoint.parent / "j.json", {}).about["fastard"] == fastard.__version__


def test_a_block_is_appended_without_reading_the_others(tmp_path, monkeypatch):
    read = []
    own = journal_module._complete
    monkeypatch.setattr(journal_module, "_complete", lambda path: read.append(path) or own(path))
    journal = Journal(tmp_path / "r.json", {})
    for i in range(4):
        journal.add({"attack": "clean", "ids": [i]})
    assert read == []
    again = Journal(tmp_path / "r.json", {})
    for i in range(4, 8):
        again.add({"attack": "clean", "ids": [i]})
    assert len(read) == 2
    assert [b["ids"] for b in Journal(tmp_path / "r.json", {}).blocks] == [[i] for i in range(8)]


def test_workers_of_the_command_line(checkpoint):
    one = evaluate_checkpoint(config(checkpoint, out=checkpoint.parent / "one.json"), QUIET)
    two = evaluate_checkpoint(
        config(checkpoint, out=checkpoint.parent / "two.json", workers=2), QUIET
    )
    assert of_the_verdicts(two) == of_the_verdicts(one)
    assert (checkpoint.parent / "two.md").exists() and (checkpoint.parent / "two.html").exists()
    with pytest.raises(ValueError, match="workers"):
        evaluate_checkpoint(config(checkpoint, workers=0), QUIET)
