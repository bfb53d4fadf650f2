"""DGAD against the published formula, swapped labels and nominal batch size included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard import losses, methods

from .loops import ALPHA, EPS, STEPS, Passes
from .steps import assert_five_steps_agree, assert_fp32_agrees, in_fp32
from .test_adaad import pair_attack

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}


def swapped(logits, y):
    rows = logits.clone()
    for row, label in zip(rows, y, strict=True):
        top = int(row.argmax())
        row[label], row[top] = row[top].clone(), row[label].clone()
    return rows


def by_groups(adv, clean, adv_teacher, clean_teacher, y, nominal, beta=1.0):
    """The published formula: group means by indexing."""

    def kl(q, p):
        return F.kl_div(q.log_softmax(1), p.softmax(1), reduction="none").sum(1)

    wrong = clean_teacher.argmax(1) != y
    count = int(wrong.sum())
    loss = beta * F.mse_loss(adv.softmax(1), clean.softmax(1))
    if count:
        group = kl(clean[wrong], swapped(clean_teacher, y)[wrong])
        loss = loss + count / nominal * group.mean()
    if count < len(y):
        group = kl(adv[~wrong], swapped(adv_teacher, y)[~wrong])
        loss = loss + (nominal - count) / nominal * group.mean()
    return loss


def published(setting, nominal):
    student, teacher = setting.twin, setting.teacher

    def loss_of(x, x_adv, y):
        clean, adv = student(x), student(x_adv)
        with torch.no_grad():
            clean_teacher, adv_teacher = teacher(x), teacher(x_adv)
        return by_groups(adv, clean, adv_teacher, clean_teacher, y, nominal)

    return pair_attack(student, teacher), loss_of


@pytest.mark.parametrize("nominal", [None, 8])
def test_five_steps_equal_the_published_loop(setting, nominal):
    method = methods.build(
        "dgad", setting.student, [setting.teacher], nominal_batch=nominal, **ATTACK
    )
    assert_five_steps_agree(method, setting, *published(setting, nominal or 6))


def test_five_fp32_steps(setting):
    single = in_fp32(setting)
    method = methods.build("dgad", single.student, [single.teacher], **ATTACK)
    assert_fp32_agrees(method, single, *published(single, 6))


def test_clean_pass_comes_first(setting):
    x, y = setting.batch
    method = methods.build("dgad", setting.student, [setting.teacher], **ATTACK)
    x_adv = method.attack(x, y)
    passes = Passes(setting.student, x=x, x_adv=x_adv)
    method.outer(x, x_adv, y)
    assert passes.seen == ["x", "x_adv"]


def draw():
    torch.manual_seed(0)
    logits = [torch.randn(6, 5, dtype=torch.float64) for _ in range(4)]
    for student in logits[:2]:
        student.requires_grad_()
    return logits


@pytest.mark.parametrize("group", ["some", "all", "none"])
@pytest.mark.parametrize("nominal", [None, 8])
def test_loss_and_gradient_also_where_a_group_is_empty(group, nominal):
    logits = draw()
    right = logits[3].argmax(1)
    y = {"some": right.clone(), "all": (right + 1) % 5, "none": right}[group]
    if group == "some":
        y[:2] = (y[:2] + 1) % 5
    ours = losses.dgad(*logits, y, beta=0.7, nominal_batch=nominal)
    expected = by_groups(*logits, y, nominal or 6, beta=0.7)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(ours, logits[:2]),
        torch.autograd.grad(expected, logits[:2]),
        strict=True,
    ):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_smaller_last_batch_is_divided_by_the_nominal_size():
    logits = draw()
    y = (logits[3].argmax(1) + 1) % 5
    whole = losses.dgad(*logits, y, beta=0.0, nominal_batch=6)
    halved = losses.dgad(*logits, y, beta=0.0, nominal_batch=12)
    torch.testing.assert_close(halved, whole / 2, rtol=1e-12, atol=0)


def test_a_batch_above_the_nominal_size_is_refused(setting):
    method = methods.build("dgad", setting.student, [setting.teacher], nominal_batch=5, **ATTACK)
    with pytest.raises(ValueError, match="nominal_batch must be at least the 6 images of a batch"):
        method(*setting.batch)


def test_labels_are_swapped_where_the_teacher_errs():
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    expected = torch.tensor([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0]])
    assert torch.equal(losses.corrected(logits, torch.tensor([0, 1])), expected)
