"""SAAD against the published loop: linearised teacher, entropy weights, code and paper forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastard import losses, methods
from fastard.api import linearised

from .loops import ALPHA, EPS, STEPS, Passes, ascend
from .steps import assert_five_steps_agree, assert_fp32_agrees, gaussian, in_fp32

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}
EPOCH, EPOCHS = 30, 200


def rows(student, teacher):
    return F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").sum(1)


def published(setting, *, slope=1.0, difference="central", clean_weight=0.0, clean_pass=False):
    student, teacher = setting.twin, setting.teacher

    def attack(x, y):
        leaf = x.clone().requires_grad_()
        logits = teacher(leaf)
        (gradient,) = torch.autograd.grad(logits[range(len(y)), y].sum(), leaf)

        def loss(u):
            near = logits.detach().clone()
            near[range(len(y)), y] += slope * torch.einsum("bchw,bchw->b", gradient, u - x)
            return F.kl_div(student(u).log_softmax(1), near.softmax(1), reduction="sum")

        return ascend(x, gaussian(x), loss)

    def loss_of(x, x_adv, y):
        below = x - (x_adv - x)
        plus = student(x_adv)
        if difference == "central":
            other = student(below)
        clean = student(x) if clean_pass else None
        with torch.no_grad():
            t_plus, t_clean, t_below = teacher(x_adv), teacher(x), teacher(below)
        t_other = t_below
        if difference == "forward":
            other, t_other = clean, t_clean
        h = torch.distributions.Categorical(logits=t_plus).entropy()
        w = 5 * (h - h.min())
        weighted = w * (rows(plus, t_plus) + EPOCH / EPOCHS * rows(plus - other, t_plus - t_other))
        if clean_weight:
            norm = (w - w.min()) / (w.max() - w.min() + 1e-8)
            weighted = weighted + clean_weight * (1 - norm) * rows(clean, t_clean)
        return weighted.mean()

    return attack, loss_of


CASES = [
    ({}, {}),
    ({"faithful": True}, {"clean_pass": True}),
    ({"difference": "forward"}, {"difference": "forward", "clean_pass": True}),
    ({"clean_weight": 0.3, "slope": 2.0}, {"clean_weight": 0.3, "slope": 2.0, "clean_pass": True}),
]


def build(setting, **options):
    method = methods.build("saad", setting.student, [setting.teacher], **ATTACK, **options)
    method.on_epoch(EPOCH, EPOCHS)
    return method


@pytest.mark.parametrize(("options", "by_hand"), CASES)
def test_five_steps_equal_the_published_loop(setting, options, by_hand):
    assert_five_steps_agree(build(setting, **options), setting, *published(setting, **by_hand))


def test_five_fp32_steps(setting):
    single = in_fp32(setting)
    assert_fp32_agrees(build(single), single, *published(single))


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({}, ["x_adv", "below"]),
        ({"faithful": True}, ["x_adv", "below", "x"]),
        ({"difference": "forward"}, ["x_adv", "x"]),
    ],
)
def test_code_and_paper_differ_in_the_point_that_is_compared(setting, options, order):
    _, y = setting.batch
    x = torch.zeros_like(setting.batch[0])
    method = build(setting, **options)
    x_adv = method.attack(x, y)
    passes = Passes(setting.student, x=x, x_adv=x_adv, below=-x_adv)
    method.outer(x, x_adv, y)
    assert passes.seen == order


def test_presets_of_code_and_paper(setting):
    assert methods.preset("saad").options_for().get("difference") is None
    assert methods.preset("saad-paper").options_for()["difference"] == "forward"
    official = methods.preset("saad-official")
    for data in ("cifar100", "tiny-imagenet"):
        assert official.options_for(data)["igdm_weight"] == 10
    assert "igdm_weight" not in official.options_for("cifar10")
    options = methods.build("saad-official", nn.Identity(), nn.Identity()).options
    assert (options.faithful, options.noise_device, options.igdm_weight) == (True, None, 1)
    assert (official.average, official.average_start, official.selection) == ("swa", 95, "last")
    assert "not confirmed" in methods.preset("saad-paper").source


def test_teacher_is_asked_three_times_and_once_backward(setting):
    method = build(setting, clean_weight=0.3)
    calls = []
    setting.teacher.register_forward_hook(lambda *_: calls.append(1))
    method(*setting.batch)
    assert len(calls) == 3
    assert all(p.grad is None for p in setting.teacher.parameters())


def test_linearised_teacher_is_exact_at_x_and_to_first_order_nearby(setting):
    x, y = setting.batch
    near, logits = linearised(setting.teacher, x, y)
    torch.testing.assert_close(near(x), logits)
    torch.testing.assert_close(logits, setting.teacher(x))
    step = 1e-6 * torch.randn_like(x)
    moved = setting.teacher(x + step)
    label = torch.arange(len(y)), y
    torch.testing.assert_close(near(x + step)[label], moved[label], rtol=0, atol=1e-9)
    others = torch.ones_like(logits, dtype=torch.bool)
    others[label] = False
    assert torch.equal(near(x + step)[others], logits[others])
    doubled, _ = linearised(setting.teacher, x, y, slope=2.0)
    gain = (doubled(x + step) - logits)[label] / (near(x + step) - logits)[label]
    torch.testing.assert_close(gain, torch.full_like(gain, 2.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["shannon", "renyi"])
def test_loss_and_gradient(kind):
    torch.manual_seed(0)
    logits = [torch.randn(4, 5, dtype=torch.float64) for _ in range(6)]
    for student in (logits[0], logits[1], logits[4]):
        student.requires_grad_()
    students = [logits[0], logits[1], logits[4]]
    ours = losses.saad(
        *logits, gradient_weight=0.4, clean_weight=0.3, entropy_scale=2.0, entropy_kind=kind
    )
    plus, other, t_plus, t_other, clean, t_clean = logits
    p = t_plus.softmax(1)
    h = {"shannon": -(p * p.log()).sum(1), "renyi": -(p**2).sum(1).log()}[kind]
    w = 2.0 * (h - h.min())
    expected = w * (rows(plus, t_plus) + 0.4 * rows(plus - other, t_plus - t_other))
    expected = (expected + 0.3 * (1 - w / (w.max() + 1e-8)) * rows(clean, t_clean)).mean()
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(ours, students), torch.autograd.grad(expected, students), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
