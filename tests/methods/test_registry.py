"""Methods and presets by name, their options, and what belongs to a method's state."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastard import methods
from fastard.methods.registry import METHODS

from .steps import student_for


def test_names_and_presets():
    assert {"natural", "pgd-at", "trades", "rslad", "rslad-batchmean"} <= set(methods.names())
    assert set(methods.names()) < set(methods.presets())
    assert all(METHODS[name].presets[0].name == name for name in methods.names())
    for name in methods.presets():
        assert methods.preset(name).method in methods.names()


@pytest.mark.parametrize("name", methods.presets())
def test_every_preset_builds_with_its_own_options(name):
    preset = methods.preset(name)
    teachers = [nn.Identity()] * METHODS[preset.method].least_teachers
    method = methods.build(name, student_for(name), teachers)
    for option, value in preset.options_for().items():
        # A method on top of another one hands on what is not its own.
        options = method.options if hasattr(method.options, option) else method.base.options
        assert getattr(options, option) == value
    for by_data in preset.options_by_data.values():
        method.known({**preset.options, **by_data})
    for by_data in preset.recipe_by_data.values():
        assert replace(preset, **by_data) != preset


def test_official_presets_have_the_published_values():
    rslad = methods.preset("rslad-official")
    assert (rslad.epochs, rslad.milestones, rslad.lr) == (300, (215, 260, 285), 0.1)
    assert (rslad.weight_decay, rslad.momentum, rslad.nesterov) == (2e-4, 0.9, False)
    assert (rslad.selection, rslad.val_steps, rslad.val_alpha) == ("test-selected", 20, 0.003)
    assert rslad.options_for("cifar100")["scale"] == 10
    assert "scale" not in rslad.options_for("cifar10")
    options = methods.build("rslad-official", nn.Identity(), [nn.Identity()]).options
    assert (options.eps, options.alpha, options.steps) == (8 / 255, 2 / 255, 10)
    assert (options.reduction, options.log_floor, options.scale) == ("mean", 1e-5, 1.0)
    assert (options.noise_device, options.random_start, options.clip_start) == ("cpu", True, None)
    trades = methods.build("trades-official", nn.Identity()).options
    assert (trades.eps, trades.alpha, trades.beta, trades.faithful) == (0.031, 0.007, 6.0, True)
    assert methods.build("madry", nn.Identity()).options.attack_mode == "train"


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (("rslda",), {}, r"unknown method 'rslda' \(did you mean 'rslad'\?\); known: "),
        (
            ("trades",),
            {"betta": 1},
            r"option of method 'trades': 'betta' \(did you mean 'beta'\?\)",
        ),
        (("natural",), {"eps": 0.1}, "option of method 'natural': 'eps'"),
        (("rslad",), {}, "'rslad' takes one teacher, but was given 0"),
        (("rslad", 2), {}, "'rslad' takes one teacher, but was given 2"),
        (("pgd-at", 1), {}, "'pgd-at' takes no teacher, but was given 1"),
    ],
)
def test_bad_input_is_one_sentence(arguments, options, sentence):
    name, count = (*arguments, 0)[:2]
    with pytest.raises(ValueError, match=sentence) as raised:
        methods.build(name, nn.Identity(), [nn.Identity()] * count, **options)
    assert "\n" not in str(raised.value)


def test_student_and_teachers_are_not_part_of_the_method(setting):
    method = methods.build("rslad", setting.student, [setting.teacher])
    assert method.state_dict() == {}
    assert list(method.children()) == []
    method.train()
    assert not setting.teacher.training
    trainable = {id(p) for p in method.trainable_parameters()}
    assert trainable == {id(p) for p in setting.student.parameters()}


def test_generator_makes_starts_repeat_and_repr_names_the_options(setting):
    generator = torch.Generator()
    method = methods.build("pgd-at", setting.student, generator=generator, eps=0.125)
    assert "eps=0.125" in repr(method)
    generator.manual_seed(5)
    first = method.attack(*setting.batch)
    generator.manual_seed(5)
    again = method.attack(*setting.batch)
    assert torch.equal(first, again)


def test_index_and_view_are_accepted_and_nothing_is_stepped(setting):
    x, y = setting.batch
    method = methods.build("trades", setting.student, steps=1)
    before = copy.deepcopy(list(setting.student.parameters()))
    loss, logs = method(x, y, torch.arange(6), torch.zeros(6, 3))
    assert loss.requires_grad
    assert set(logs) == {"loss", "clean_accuracy", "robust_accuracy"}
    for old, new in zip(before, setting.student.parameters(), strict=True):
        assert torch.equal(old, new)
