"""AdaIAD against the published loop, before and after its warm-up, with its passes and without."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard import losses, methods

from .loops import ALPHA, EPS, STEPS, Passes
from .steps import assert_five_steps_agree, assert_fp32_agrees, in_fp32
from .test_adaad import pair_attack

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}
T, BETA = 30.0, 0.1


def published(setting, epoch, passes):
    """`passes`: the student's, as "x" and "a"; the last "x" but one, or the only one, is the
    target after the warm-up."""
    student, teacher = setting.twin, setting.teacher

    def loss_of(x, x_adv, y):
        clean = []
        for name in passes:
            if name == "a":
                adv = student(x_adv)
            else:
                clean.append(student(x))
        with torch.no_grad():
            guide = teacher(x_adv)
        soft = F.kl_div((adv / T).log_softmax(1), (guide / T).softmax(1), reduction="sum")
        loss = T * T * soft / len(x)
        if epoch > 60:
            target = clean[-2] if len(clean) > 1 else clean[0]
            w = torch.stack([F.softmax(guide[i], 0)[y[i]] ** BETA for i in range(len(y))])
            rows = F.kl_div(adv.log_softmax(1), target.softmax(1), reduction="none").sum(1)
            loss = loss + (rows * (1 - w)).mean()
        return loss

    return pair_attack(student, teacher), loss_of


CASES = [
    (60, {}, "a"),
    (61, {}, "xa"),
    (60, {"faithful": True}, "xax"),
    (61, {"faithful": True}, "xaxx"),
]


def build(setting, epoch, **options):
    method = methods.build("adaiad", setting.student, [setting.teacher], **ATTACK, **options)
    method.on_epoch(epoch, 200)
    return method


@pytest.mark.parametrize(("epoch", "options", "passes"), CASES)
def test_five_steps_equal_the_published_loop(setting, epoch, options, passes):
    method = build(setting, epoch, **options)
    assert_five_steps_agree(method, setting, *published(setting, epoch, passes))


@pytest.mark.parametrize(("epoch", "options", "passes"), CASES[1::2])
def test_five_fp32_steps(setting, epoch, options, passes):
    single = in_fp32(setting)
    method = build(single, epoch, **options)
    assert_fp32_agrees(method, single, *published(single, epoch, passes))


@pytest.mark.parametrize(("epoch", "options", "passes"), CASES)
def test_order_of_the_passes(setting, epoch, options, passes):
    x, y = setting.batch
    method = build(setting, epoch, **options)
    x_adv = method.attack(x, y)
    seen = Passes(setting.student, x=x, a=x_adv)
    method.outer(x, x_adv, y)
    assert "".join(seen.seen) == passes


def test_warm_up_is_in_the_state(setting):
    method = build(setting, 61)
    other = methods.build("adaiad", setting.student, [setting.teacher])
    assert other.epoch == 1
    other.load_state_dict(method.state_dict())
    assert other.epoch == 61


def test_loss_and_gradient():
    torch.manual_seed(0)
    adv, guide, clean = (torch.randn(4, 5, dtype=torch.float64) for _ in range(3))
    adv.requires_grad_()
    clean.requires_grad_()
    y = torch.tensor([0, 4, 2, 2])
    ours = losses.adaiad(adv, guide, y, clean, beta=0.7, temperature=3.0)
    p, q = (guide / 3).softmax(1), (adv / 3).softmax(1)
    weight = 1 - guide.softmax(1)[range(4), y] ** 0.7
    own = (clean.softmax(1) * (clean.log_softmax(1) - adv.log_softmax(1))).sum(1)
    expected = (9 * (p * (p.log() - q.log())).sum(1) + weight * own).mean()
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(ours, (adv, clean)),
        torch.autograd.grad(expected, (adv, clean)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
