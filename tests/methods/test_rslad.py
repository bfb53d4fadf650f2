"""RSLAD against the published loop: loss, order of passes, statistics, one teacher forward."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fastard import methods

from .loops import (
    ALPHA,
    EPS,
    STEPS,
    Passes,
    ascend,
    assert_same_network,
    network,
    sgd,
    train_with,
)

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}


def published_loop(student, teacher, batches, *, divisor, scale=1.0, floor=1e-5):
    torch.manual_seed(3)
    optimizer, losses = sgd(student), []
    for x, _ in batches:
        with torch.no_grad():
            teacher_logits = teacher(x)
        p = F.softmax(teacher_logits, dim=1)
        student.eval()
        start = x + 0.001 * torch.randn(x.shape).double()
        x_adv = ascend(
            x, start, lambda u, p=p: F.kl_div(student(u).log_softmax(1), p, reduction="sum")
        )
        student.train()
        terms = []
        for u in (x_adv, x):
            elementwise = -student(u).log_softmax(1) * p + torch.log(p + floor) * p
            terms.append(scale * elementwise.sum() / divisor)
        loss = 5 / 6 * terms[0] + 1 / 6 * terms[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("name", "options", "published"),
    [
        ("rslad", {}, {"divisor": 6 * 5}),
        ("rslad", {"scale": 10.0}, {"divisor": 6 * 5, "scale": 10.0}),
        ("rslad-batchmean", {}, {"divisor": 6, "floor": 0.0}),
    ],
)
def test_three_steps_equal_the_published_loop(setting, name, options, published):
    method = methods.build(name, setting.student, [setting.teacher], **ATTACK, **options)
    losses = train_with(method, setting.batches)
    expected = published_loop(setting.twin, setting.teacher, setting.batches, **published)
    assert losses == pytest.approx(expected, rel=1e-8)
    assert_same_network(setting.student, setting.twin)


def test_adversarial_pass_comes_first_and_each_is_a_pass_of_its_own(setting):
    x, y = setting.batch
    method = methods.build("rslad", setting.student, [setting.teacher], **ATTACK)
    x_adv = method.attack(x, y)
    passes = Passes(setting.student, x=x, x_adv=x_adv)
    before = int(setting.student[1].num_batches_tracked)
    method.outer(x, x_adv, y)
    assert passes.seen == ["x_adv", "x"]
    assert int(setting.student[1].num_batches_tracked) == before + 2


def count_forwards(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_one_teacher_forward_a_batch(setting):
    method = methods.build("rslad", setting.student, [setting.teacher], **ATTACK)
    calls = count_forwards(setting.teacher)
    for x, y in setting.batches:
        method(x, y)
    assert len(calls) == 3
    x, y = setting.batch
    x_adv = method.attack(x, y)
    method.outer(x, x_adv, y)
    assert len(calls) == 4


def test_outer_asks_the_teacher_anew_for_other_images(setting):
    method = methods.build("rslad", setting.student, [setting.teacher], **ATTACK)
    (x, y), (other, other_y) = setting.batches[:2]
    x_adv = method.attack(x, y)
    calls = count_forwards(setting.teacher)
    twin = methods.build("rslad", copy.deepcopy(setting.student), [setting.teacher], **ATTACK)
    loss, _ = method.outer(other, x_adv, other_y)
    expected, _ = twin.outer(other, x_adv, other_y)
    assert torch.equal(loss, expected)
    assert len(calls) == 2


def test_teacher_stays_in_eval_mode_and_gets_no_gradient(setting):
    setting.teacher.train()
    method = methods.build("rslad", setting.student, [setting.teacher], **ATTACK)
    setting.teacher.train()
    before = copy.deepcopy(setting.teacher.state_dict())
    loss, _ = method(*setting.batch)
    loss.backward()
    assert not setting.teacher.training
    assert all(p.grad is None for p in setting.teacher.parameters())
    assert all(torch.equal(before[k], v) for k, v in setting.teacher.state_dict().items())


def test_teacher_of_another_class_count_is_one_sentence(setting):
    method = methods.build("rslad", setting.student, [network(1, classes=3)], **ATTACK)
    with pytest.raises(ValueError, match=r"teacher.*\b3\b.*\b5\b|teacher.*\b5\b.*\b3\b") as raised:
        method(*setting.batch)
    assert "\n" not in str(raised.value)
