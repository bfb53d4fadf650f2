"""Options, networks and batches that a method refuses, and those it converts."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from fastard import methods
from fastard.engine import Program, precision
from fastard.methods.options import PRECISIONS

from .loops import teachers_for
from .steps import student_for


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("trades", {"eps": -1}, "option eps must be a finite number of at least 0, but is -1"),
        ("trades", {"alpha": float("nan")}, "option alpha must be a finite number"),
        ("trades", {"eps": torch.ones(3, dtype=torch.int64)}, "option eps must be"),
        ("trades", {"steps": 0}, "option steps must be an integer above 0, but is 0"),
        ("trades", {"steps": 2.5}, "option steps must be an integer"),
        ("trades", {"norm": "L3"}, "unknown norm 'L3'"),
        ("trades", {"random_start": "foo"}, "option random_start must be True, False, 'gaussian'"),
        ("trades", {"random_start": 1}, "option random_start must be"),
        ("trades", {"clip_start": "no"}, "option clip_start must be True, False or None"),
        ("trades", {"clip_min": "abc"}, "option clip_min must be a finite number, but is 'abc'"),
        ("trades", {"clip_min": 1.0}, "option clip_min must be below clip_max"),
        ("trades", {"precision": "fp8"}, "unknown option precision 'fp8'"),
        ("trades", {"capture": "on"}, "unknown option capture 'on'; known: auto, never"),
        ("trades", {"engine": "no"}, "option engine must be True or False, but is 'no'"),
        ("trades", {"noise_device": "banana"}, "option noise_device must be None, cpu or a cuda"),
        ("trades", {"generator": 3}, "option generator must be a torch.Generator or None"),
        ("trades", {"beta": "abc"}, "option beta must be a finite number of at least 0"),
        ("trades", {"faithful": 1}, "option faithful must be True or False, but is 1"),
        ("pgd-at", {"attack_mode": "foo"}, "unknown option attack_mode 'foo'"),
        ("pgd-at", {"bn_stats": "frozn"}, r"'frozn' \(did you mean 'frozen'\?\)"),
        ("rslad", {"adv_weight": 2.0}, "option adv_weight must be a number from 0 to 1, but is 2"),
        ("rslad", {"adv_weight": "abc"}, "option adv_weight must be a number from 0 to 1"),
        ("rslad", {"scale": True}, "option scale must be a finite number"),
        ("rslad", {"reduction": "foo"}, "unknown option reduction 'foo'; known: mean"),
        ("rslad-batchmean", {"log_floor": -1e-5}, "option log_floor must be"),
    ],
)
def test_bad_option_is_one_sentence_when_built(name, options, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        methods.build(name, nn.Identity(), [nn.Identity()] if "rslad" in name else [], **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["trades", "adaad", "saad", "ard", "fgsm-rs", "n-fgsm", "igdm"])
def test_how_an_attack_runs_is_passed_through(setting, name, monkeypatch):
    seen, call = [], Program.__init__

    def noted(self, *arguments, **named):
        seen.append((named.get("engine"), named.get("capture")))
        call(self, *arguments, **named)

    monkeypatch.setattr(Program, "__init__", noted)
    teachers = teachers_for(name, setting.teacher)
    x, y = setting.batch
    for settings in ({}, {"capture": "never", "engine": False}):
        seen.clear()
        method = methods.build(name, student_for(name), teachers, **settings)
        method.attack(x, y)
        assert (settings.get("engine", True), settings.get("capture", "auto")) in seen


def test_known_precisions_are_those_of_the_engine():
    assert PRECISIONS == precision.PRECISIONS


def test_a_network_must_be_one():
    with pytest.raises(TypeError, match="student must be an nn.Module, but is a NoneType"):
        methods.build("trades", None)
    with pytest.raises(TypeError, match="teachers must be an nn.Module or a sequence"):
        methods.build("rslad", nn.Identity(), teachers=3)
    with pytest.raises(TypeError, match="every teacher must be an nn.Module, but one is a str"):
        methods.build("rslad", nn.Identity(), ["teacher.pt"])


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: [t], lambda t: nn.ModuleList([t])])
def test_a_teacher_may_stand_alone_and_is_never_taken_apart(wrap):
    teacher = nn.Sequential(nn.Identity())
    method = methods.build("rslad", nn.Identity(), teachers=wrap(teacher))
    assert len(method.teachers) == 1
    assert method.teachers[0] is teacher


@pytest.mark.parametrize("name", methods.names())
def test_labels_of_any_integer_dtype(setting, name):
    x, y = setting.batch
    losses = []
    for labels in (y, y.int(), y.to(torch.uint8)):
        student = student_for(name)
        # The global generator: not every method takes one of its own.
        torch.manual_seed(1)
        teachers = copy.deepcopy(teachers_for(name, setting.teacher))
        loss, _ = methods.build(name, student, teachers)(x, labels)
        losses.append(loss.item())
    assert losses[0] == losses[1] == losses[2]


LABEL_FREE = {"rslad", "rslad-batchmean", "funmatch", "adaad", "advfunmatch", "igdm"}
READS_LABELS = [name for name in methods.names() if name not in LABEL_FREE]


@pytest.mark.parametrize("name", READS_LABELS)
@pytest.mark.parametrize("label", [-1, -100, 5])
def test_label_that_is_no_class(setting, name, label):
    x, y = setting.batch
    teachers = teachers_for(name, setting.teacher)
    y = y.clone()
    y[2] = label
    with pytest.raises(ValueError, match=r"must lie in \[0, 5\)"):
        methods.build(name, student_for(name), teachers)(x, y)
    with pytest.raises(TypeError, match="y must hold integer class indices"):
        methods.build(name, student_for(name), teachers)(x, y.float())


@pytest.mark.parametrize("name", methods.names())
def test_empty_batch_is_refused(setting, name):
    x, y = setting.batch
    method = methods.build(name, student_for(name), teachers_for(name, setting.teacher))
    with pytest.raises(ValueError, match=r"x must hold at least one image, but has shape \[0, 1"):
        method(x[:0], y[:0])


def test_method_is_pickled_after_an_attack(setting):
    method = methods.build("rslad", setting.student, [setting.teacher], steps=1)
    x, y = setting.batch
    method.attack(x, y)
    copied = pickle.loads(pickle.dumps(method))
    assert copied.options == method.options
    assert torch.equal(copied.teachers[0](x), setting.teacher(x))
