"""IAD-I: its two losses, its warm-up, the weight that code and paper disagree on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastard import losses, methods

from .formulas import assert_formula, kl, labels, logits, softmax
from .loops import ALPHA, EPS, STEPS, ascend
from .parity import Case, assert_same_training, batches, teacher, twins, uniform_start

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}


def test_trust_is_the_teachers_probability_of_the_label_to_the_power_beta():
    z, y = logits(0), labels()
    expected = torch.stack([row[k] ** 0.1 for row, k in zip(softmax(z), y, strict=True)])
    torch.testing.assert_close(losses.teacher_trust(z, y), expected)
    assert not losses.teacher_trust(z.requires_grad_(), y).requires_grad
    assert torch.equal(losses.teacher_trust(z, y, 0.0), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("weigh_teacher", [False, True])
@pytest.mark.parametrize("t", [1.0, 3.0])
def test_loss_and_gradients_the_own_target_not_detached(t, weigh_teacher):
    target = logits(3)
    w = torch.tensor([0.1, 0.9, 0.5, 0.3, 1.0], dtype=torch.float64)

    def formula(adv, clean):
        taught = t * t * kl(adv / t, target / t) * (w if weigh_teacher else 1)
        return (taught + (1 - w) * kl(adv, clean)).mean()

    assert_formula(
        lambda adv, clean: losses.iad_1(adv, clean, target, w, t, weigh_teacher=weigh_teacher),
        formula,
        *(0, 1),
        rtol=1e-9,
    )


def test_code_and_paper_differ_in_the_teachers_weight():
    adv, clean, target = map(logits, (0, 1, 2))
    w = torch.full((5,), 0.25, dtype=torch.float64)
    code = losses.iad_1(adv, clean, target, w)
    paper = losses.iad_1(adv, clean, target, w, weigh_teacher=True)
    torch.testing.assert_close(code - paper, 0.75 * kl(adv, target).mean())


def make(dtype, *, faithful, weigh_teacher=False, train=True):
    student, twin = twins(dtype)
    robust = teacher(dtype)

    def by_hand(x, y, epoch):
        twin.train(train)
        x_adv = ascend(x, uniform_start(x), lambda u: F.cross_entropy(twin(u), y, reduction="sum"))
        twin.train()
        adv = twin(x_adv)
        if faithful:
            twin(x_adv)
        taught = F.kl_div(adv.log_softmax(1), robust(x).softmax(1).detach(), reduction="none")
        taught, own = taught.sum(1), 0.0
        # The published code counts epochs from 0 and begins at 60.
        if epoch - 1 >= 60:
            w = robust(x_adv).detach().softmax(1).gather(1, y[:, None])[:, 0] ** 0.1
            own = F.kl_div(adv.log_softmax(1), twin(x).softmax(1), reduction="none").sum(1)
            own = own * (1 - w)
            taught = taught * w if weigh_teacher else taught
        if faithful:
            twin(x)
        return x_adv, (taught + own).mean()

    method = methods.build(
        "iad-1",
        student,
        robust,
        faithful=faithful,
        weigh_teacher=weigh_teacher,
        attack_mode="train" if train else "eval",
        **ATTACK,
    )
    return Case(method, by_hand, [(student, twin)])


@pytest.mark.parametrize(
    "options",
    [
        {"faithful": True},
        {"faithful": False, "train": False},
        {"faithful": True, "weigh_teacher": True},
    ],
)
def test_five_steps_across_the_end_of_the_warm_up(options):
    assert_same_training(lambda dtype: make(dtype, **options), [59, 60, 61, 62, 200])


def test_passes_that_the_published_code_discards():
    for faithful, before, after in [(False, 1, 2), (True, 3, 4)]:
        case = make(torch.float64, faithful=faithful, train=False)
        x, y = batches(torch.float64)[0]
        x_adv = case.method.attack(x, y)
        counted = case.pairs[0][0][1].num_batches_tracked
        for epoch, passes in [(60, before), (61, after)]:
            case.method.on_epoch(epoch, 200)
            old = int(counted)
            case.method.outer(x, x_adv, y)
            assert int(counted) - old == passes


def test_state_carries_the_epoch():
    method, other = (methods.build("iad-1", nn.Identity(), nn.Identity()) for _ in range(2))
    method.on_epoch(77, 200)
    state = method.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    other.load_state_dict(state)
    assert other.epoch == 77


def test_presets():
    names = ("iad-1", "iad-1-official", "iad-paper")
    options = [methods.build(name, nn.Identity(), nn.Identity()).options for name in names]
    assert [o.weigh_teacher for o in options] == [False, False, True]
    assert [o.attack_mode for o in options] == ["eval", "train", "train"]
    assert [o.faithful for o in options] == [False, True, True]
    assert {(o.warm_up, o.beta, o.temperature, o.clip_start) for o in options} == {
        (60, 0.1, 1.0, False)
    }
