"""AdaAD against the published loop: both terms, the gradient through both networks, the passes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard import losses, methods

from .loops import ALPHA, EPS, STEPS, Passes, ascend
from .steps import assert_five_steps_agree, assert_fp32_agrees, gaussian, in_fp32

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}


def kl(student_logits, teacher_logits, reduction="batchmean"):
    total = F.kl_div(student_logits.log_softmax(1), teacher_logits.softmax(1), reduction="sum")
    rows, classes = student_logits.shape
    return total / {"sum": 1, "batchmean": rows, "mean": rows * classes}[reduction]


def pair_attack(student, teacher):
    """Both networks see x', and the gradient runs through both."""

    def attack(x, y):
        return ascend(x, gaussian(x), lambda u: kl(student(u), teacher(u), "sum"))

    return attack


def published(setting, weight, reduction, clean_pass=True):
    student, teacher = setting.twin, setting.teacher

    def loss_of(x, x_adv, y):
        with torch.no_grad():
            clean_teacher, adv_teacher = teacher(x), teacher(x_adv)
        clean = kl(student(x), clean_teacher, reduction) if clean_pass else 0.0
        return weight * kl(student(x_adv), adv_teacher, reduction) + (1 - weight) * clean

    return pair_attack(student, teacher), loss_of


CASES = [
    ({}, (1.0, "mean", False)),
    ({"faithful": True}, (1.0, "mean", True)),
    ({"reduction": "batchmean", "adv_weight": 0.75}, (0.75, "batchmean", True)),
]


@pytest.mark.parametrize(("options", "by_hand"), CASES)
def test_five_steps_equal_the_published_loop(setting, options, by_hand):
    method = methods.build("adaad", setting.student, [setting.teacher], **ATTACK, **options)
    assert_five_steps_agree(method, setting, *published(setting, *by_hand))


@pytest.mark.parametrize(("options", "by_hand"), CASES)
def test_five_fp32_steps(setting, options, by_hand):
    single = in_fp32(setting)
    method = methods.build("adaad", single.student, [single.teacher], **ATTACK, **options)
    assert_fp32_agrees(method, single, *published(single, *by_hand))


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({}, ["x_adv"]),
        ({"faithful": True}, ["x", "x_adv"]),
        ({"adv_weight": 0.5}, ["x", "x_adv"]),
    ],
)
def test_clean_pass_comes_before_the_adversarial_one(setting, options, order):
    x, y = setting.batch
    method = methods.build("adaad", setting.student, [setting.teacher], **ATTACK, **options)
    x_adv = method.attack(x, y)
    before = int(setting.student[1].num_batches_tracked)
    passes = Passes(setting.student, x=x, x_adv=x_adv)
    _, logs = method.outer(x, x_adv, y)
    assert passes.seen == order
    assert int(setting.student[1].num_batches_tracked) == before + len(order)
    assert ("clean_accuracy" in logs) == ("x" in order)


@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum"])
def test_loss_and_gradient(reduction):
    torch.manual_seed(0)
    logits = [torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    adv, adv_teacher, clean, clean_teacher = logits
    ours = losses.adaad(*logits, adv_weight=0.7, reduction=reduction)
    divisor = {"mean": 20, "batchmean": 4, "sum": 1}[reduction]
    terms = [
        (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum() / divisor
        for q, p in ((adv, adv_teacher), (clean, clean_teacher))
    ]
    expected = 0.7 * terms[0] + 0.3 * terms[1]
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(ours, logits), torch.autograd.grad(expected, logits), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_bad_weights_are_one_sentence():
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="adv_weight must lie between 0 and 1, but is 2"):
        losses.adaad(logits, logits, adv_weight=2)
    with pytest.raises(ValueError, match="clean logits must be given where adv_weight is 0.5"):
        losses.adaad(logits, logits, adv_weight=0.5)


def test_teacher_gets_no_gradient_and_keeps_its_statistics(setting):
    method = methods.build("adaad", setting.student, [setting.teacher], **ATTACK)
    before = {name: t.clone() for name, t in setting.teacher.state_dict().items()}
    loss, _ = method(*setting.batch)
    loss.backward()
    assert all(p.grad is None for p in setting.teacher.parameters())
    assert all(torch.equal(before[k], v) for k, v in setting.teacher.state_dict().items())


def test_reduction_follows_the_data_set():
    preset = methods.preset("adaad-official")
    assert preset.options_for("cifar100")["reduction"] == "batchmean"
    assert "reduction" not in preset.options_for("cifar10")
    assert (preset.weight_decay, preset.epochs, preset.milestones) == (5e-4, 200, (100, 150))
