"""AKD: mixed labels, ensembles of teachers, what they see and what the attack follows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastard import losses, methods

from .formulas import assert_formula, kl, labels, logits, nll, softmax
from .loops import ALPHA, EPS, STEPS, ascend
from .parity import Case, assert_same_training, teacher, twins, uniform_start

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}


@pytest.mark.parametrize(("alpha", "t"), [(0.5, 1.0), (0.9, 4.0), (0.0, 1.0), (1.0, 2.0)])
def test_loss_and_both_gradients(alpha, t):
    y = labels()
    assert_formula(
        lambda z, target: losses.kd(z, target, y, alpha, t),
        lambda z, target: (1 - alpha) * nll(z, y) + alpha * t * t * kl(z / t, target / t).mean(),
        *(0, 1),
        rtol=1e-9,
    )


def test_at_temperature_1_its_gradient_is_that_of_mixed_labels():
    y, target, z = labels(), logits(1), logits(0).requires_grad_()
    mixed = 0.3 * F.one_hot(y, 7) + 0.7 * softmax(target)
    expected = -(mixed * z.log_softmax(1)).sum(1).mean()
    found = losses.kd(z, target, y, 0.7, 1.0)
    torch.testing.assert_close(
        torch.autograd.grad(found, z)[0], torch.autograd.grad(expected, z)[0]
    )


@pytest.mark.parametrize("t", [1.0, 3.0])
def test_ensembles(t):
    answers = [logits(0), logits(1), logits(2)]
    averaged = losses.ensemble_logits(answers, "probabilities", t)
    expected = sum(softmax(z / t) for z in answers) / 3
    torch.testing.assert_close(softmax(averaged / t), expected)
    torch.testing.assert_close(losses.ensemble_logits(answers, "logits", t), sum(answers) / 3)
    assert losses.ensemble_logits(answers[:1], "probabilities", t) is answers[0]


def make(dtype, **options):
    student, twin = twins(dtype)
    teachers = [teacher(dtype), teacher(dtype, seed=5)]
    t, alpha = options.get("temperature", 1.0), options.get("teacher_weight", 0.5)

    @torch.no_grad()
    def soft(u):
        if options.get("ensemble") == "logits":
            return F.softmax(sum(net(u) for net in teachers) / 2 / t, 1)
        return sum(F.softmax(net(u) / t, 1) for net in teachers) / 2

    def by_hand(x, y, epoch):
        twin.eval()
        hard = F.one_hot(y, 5).to(dtype)
        followed = hard
        if options.get("attack_labels") == "mixed":
            followed = (1 - alpha) * hard + alpha * soft(x)
        start = uniform_start(x).clamp(0, 1)
        x_adv = ascend(x, start, lambda u: -(followed * twin(u).log_softmax(1)).sum())
        twin.train()
        adv = twin(x_adv)
        p = soft(x if options.get("teacher_input") == "clean" else x_adv)
        divergence = F.kl_div((adv / t).log_softmax(1), p, reduction="batchmean")
        return x_adv, (1 - alpha) * F.cross_entropy(adv, y) + alpha * t * t * divergence

    method = methods.build("akd", student, teachers, **ATTACK, **options)
    return Case(method, by_hand, [(student, twin)])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ensemble": "logits", "temperature": 2.0, "teacher_weight": 0.8},
        {"teacher_input": "clean", "attack_labels": "mixed", "temperature": 2.0},
        {"attack_labels": "mixed"},
    ],
)
def test_five_steps_equal_a_loop(options):
    assert_same_training(lambda dtype: make(dtype, **options))


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, 1),
        ({"teacher_input": "clean"}, 1),
        ({"teacher_input": "clean", "attack_labels": "mixed"}, 1),
        ({"attack_labels": "mixed"}, 2),
    ],
)
def test_passes_of_each_teacher(setting, options, asked):
    calls = []
    setting.teacher.register_forward_hook(lambda *_: calls.append(1))
    method = methods.build("akd", setting.student, [setting.teacher], **ATTACK, **options)
    method(*setting.batch)
    assert len(calls) == asked


def test_bad_input_is_one_sentence():
    for options, sentence in [
        ({"ensemble": "probs"}, "unknown option ensemble 'probs'"),
        ({"teacher_input": "x"}, "unknown option teacher_input"),
        ({"attack_labels": "soft"}, "unknown option attack_labels"),
        ({"teacher_weight": 2}, "option teacher_weight must be a number from 0 to 1"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            methods.build("akd", nn.Identity(), nn.Identity(), **options)
    with pytest.raises(ValueError, match="takes at least one teacher, but was given 0"):
        methods.build("akd", nn.Identity())
    with pytest.raises(ValueError, match="unknown ensemble"):
        losses.ensemble_logits([logits(0)], "votes")
    with pytest.raises(ValueError, match="at least one teacher's, but is empty"):
        losses.ensemble_logits([])
    with pytest.raises(ValueError, match=r"\[5, 7\].*\[5, 3\]"):
        losses.ensemble_logits([logits(0), logits(0, classes=3)])
