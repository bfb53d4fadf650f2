"""AutoAttack in a suite: what it broke stays broken, its state, fewer classes, a second opinion."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastard import data, models
from fastard.autoattack import referee
from fastard.autoattack.driver import AutoAttack
from fastard.evaluate import EvaluateConfig, evaluate_checkpoint
from fastard.evaluation.attacks import AutoAttackParts, Setting
from fastard.evaluation.journal import Journal
from fastard.evaluation.judge import judge_block
from fastard.evaluation.results import markdown, protocol, table
from fastard.evaluation.run import Evaluation, evaluate
from fastard.evaluation.second_opinion import second_opinion
from fastard.evaluation.suites import SUITES
from fastard.progress import QUIET

SMALL = AutoAttackParts("aa", "AA", "custom", ("apgd-ce", "square"), n_queries=20)


@pytest.fixture(scope="module")
def images():
    return data.load("digits").test.first(24)


def linear(images, classes=10):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images.float()), images.y).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.setitem(SUITES, "autoattack", (SMALL,))


def test_what_the_attack_broke_no_second_pass_brings_back(images):
    model, x, y, ids = linear(images), images.float(), images.y, torch.arange(24)
    broke = SimpleNamespace(search=lambda *_: (x, ["square", "clean", *[""] * 22]))
    right = model(x).argmax(1) == y
    assert right[:2].all()
    found = judge_block(Setting(model), broke, x, y, ids)
    assert found.survived.tolist() == [False, False, *right[2:].tolist()]


class Killed(Exception):
    """Stands for the end of a process."""


def test_a_block_goes_on_where_its_attack_was(images, suite, tmp_path, monkeypatch):
    setting, out = Setting(linear(images), eps=0.15), tmp_path / "r.json"
    whole = Evaluation(setting, images, "autoattack")
    whole.go()
    asked, own = [], AutoAttack.run_standard_evaluation

    def dying(self, *args, **kwargs):
        told = self.on_batch

        def on_batch(attack, done, total, accuracy):
            told(attack, done, total, accuracy)
            asked.append((attack, total))
            if len(asked) == 1:
                raise Killed

        self.on_batch = on_batch
        return own(self, *args, **kwargs)

    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", dying)
    with pytest.raises(Killed):
        Evaluation(setting, images, "autoattack", journal=Journal(out, {"eps": 0.15})).go()
    (state,) = tmp_path.glob(".r.json.state-aa-0-*.json")
    assert json.loads(state.read_text())["_robust_flags"]
    again = Evaluation(setting, images, "autoattack", journal=Journal(out, {"eps": 0.15}))
    again.go()
    assert [attack for attack, _ in asked] == ["apgd-ce", "square"]
    left = sum(whole.result()["verdicts"]["aa"])
    assert 0 < left <= asked[1][1] < asked[0][1]
    assert again.result()["verdicts"] == whole.result()["verdicts"]
    assert again.result()["broken_by"] == whole.result()["broken_by"]
    # The state is the block's alone, and goes with it.
    assert [path.name for path in tmp_path.iterdir()] == [".r.json.part-0.jsonl"]


def test_a_state_is_found_for_the_same_samples_of_the_same_evaluation_alone(tmp_path):
    journal, other = (Journal(tmp_path / "r[1].json", {"eps": eps}) for eps in (0.1, 0.2))
    paths = {
        journal.state_path("aa", [0, 1]), journal.state_path("aa", [0, 2]),
        journal.state_path("square", [0, 1]), other.state_path("aa", [0, 1]),
    }  # fmt: skip
    assert len(paths) == 4 and journal.state_path("aa", [0, 1]) in paths
    for path in paths:
        path.write_text("{}")
        path.with_name(path.name + ".adversarials").mkdir()
    journal.forget_state("aa", [0, 1])
    assert len(list(tmp_path.iterdir())) == 6
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_is_inside_a_block_is_shown(images, suite, monkeypatch):
    told = []
    shown = lambda progress, task: lambda part, accuracy: told.append((part, accuracy))  # noqa: E731
    monkeypatch.setattr("fastard.evaluation.run._shown", shown)
    result = evaluate(linear(images), images, suite="autoattack", eps=0.05)
    assert [part for part, _ in told] == ["apgd-ce", "square"]
    assert told[-1][1] == result["accuracy"]["aa"] <= told[0][1]


def test_with_three_classes_the_result_says_reduced(images, monkeypatch):
    kept = images.select((images.y < 3).nonzero()[:, 0])
    parts = AutoAttackParts("aa", "AA", "custom", ("apgd-t",))
    monkeypatch.setitem(SUITES, "autoattack", (parts,))
    few = evaluate(linear(kept, classes=3), kept, suite="autoattack", eps=0.05)
    assert few["reduced"] == ["aa"] and few["attacks"]["aa"] == "AA: AutoAttack reduced (apgd-t)"
    few |= {"checkpoint": "c", "selection": "s", "architecture": "linear", "data": "digits"}
    assert "AA (reduced): APGD-T becomes APGD-DLR with 3 classes" in protocol(few)
    assert "(AutoAttack, reduced)" in markdown(few) and "| AA (reduced) |" in markdown(few)
    assert "AA (reduced)" in [column.header for column in table(few).columns]
    whole = evaluate(linear(images), images, suite="autoattack", eps=0.05)
    assert whole["reduced"] == [] and "reduced" not in whole["attacks"]["aa"]


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    path, net = tmp_path / "net.safetensors", models.build("small_cnn-4", 10, image_size=8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for batch in data.load("digits").train.first(640).batches(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch.x), batch.y).backward()
        optimizer.step()
    models.save(path, net.eval(), name="small_cnn-4", num_classes=10, image_size=8)
    return path


def config(checkpoint, **options):
    settings = {"suite": "autoattack", "data": "digits", "n": 24, "eps": 0.02, **options}
    return EvaluateConfig(checkpoint=checkpoint, **settings)


def test_the_referee_is_asked_and_told_of(checkpoint, suite):
    if referee.installed() is None:
        pytest.skip("no official package is installed: pip install pyautoattack")
    result = evaluate_checkpoint(config(checkpoint, referee="official", referee_n=16), QUIET)
    opinion = result["referee"]["aa"]
    assert opinion["n"] == 16 and opinion["differing"] == []
    assert opinion["told"].endswith("0 verdicts differ") and opinion["told"] in protocol(result)
    robust = sum(result["verdicts"]["aa"][:16])
    assert 0 < robust < 16
    assert f"on 16 samples: {robust} robust, here {robust}" in opinion["told"]
    assert json.loads((checkpoint.parent / "net.autoattack.json").read_text()) == result


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"referee": "offical"}, r"unknown referee 'offical' \(did you mean 'official'\?\)"),
        ({"referee": "official", "suite": "basic"}, "suite must be one of rslad, .* is 'basic'"),
        ({"referee": "official", "referee_n": 0}, "referee_n .* must be at least 1, but is 0"),
        ({"referee": "official"}, "needs the official code: pip install pyautoattack"),
    ],
)
def test_a_referee_that_cannot_judge_is_one_sentence(checkpoint, monkeypatch, options, sentence):
    monkeypatch.setattr(referee, "installed", lambda: None)
    monkeypatch.setattr(models, "load_checkpoint", None)
    with pytest.raises(ValueError, match=sentence):
        evaluate_checkpoint(config(checkpoint, **options), QUIET)


def test_a_reduced_suite_has_no_referee(images):
    result = {"suite": "autoattack", "reduced": ["aa"], "verdicts": {}}
    found = second_opinion(Setting(nn.Identity()), images, result, 5)
    assert "runs no reduced suite" in found["aa"]["told"]


def test_the_weighted_suite_weighs_each_attack(images, monkeypatch):
    parts = (AutoAttackParts("apgd", "APGD-CE", "custom", ("apgd-ce",)),)
    monkeypatch.setitem(SUITES, "weighted", parts)
    result = evaluate(linear(images), images, suite="weighted", eps=0.25)
    clean, robust = result["accuracy"]["clean"], result["accuracy"]["apgd"]
    assert robust < clean
    assert result["weighted"]["apgd"] == (clean + robust) / 2
    assert result["weighted"]["worst"] == result["weighted_robust_accuracy"]
    result |= {"checkpoint": "c", "selection": "s", "architecture": "linear", "data": "digits"}
    assert f"| weighted | - | {50 * (clean + robust):.2f}% |" in markdown(result)
    assert [column.header for column in table(result).columns] == ["", "clean", "APGD-CE", "worst"]
