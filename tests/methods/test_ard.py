"""ARD: its loss at t = 30 over B * C, its train-mode attack, its pass without weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastard import losses, methods

from .formulas import assert_formula, kl, labels, logits, nll
from .loops import ALPHA, EPS, STEPS, ascend
from .parity import Case, assert_same_training, batches, teacher, twins, uniform_start

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}


@pytest.mark.parametrize(
    ("t", "reduction", "divisor"), [(30.0, "mean", 35), (1.0, "batchmean", 5), (4.0, "sum", 1)]
)
@pytest.mark.parametrize("alpha", [1.0, 0.7])
def test_loss_and_gradients(alpha, t, reduction, divisor):
    y, target = labels(), logits(3)

    def formula(adv, clean):
        soft = t * t * kl(adv / t, target / t).sum() / divisor
        return alpha * soft + (1 - alpha) * nll(clean, y)

    assert_formula(
        lambda adv, clean: losses.ard(adv, target, clean, y, alpha, t, reduction),
        formula,
        *(0, 1),
        rtol=1e-9,
    )


def test_defaults_are_the_published_mean_over_batch_and_classes_at_t_30():
    adv, target = logits(0), logits(3)
    # KLDivLoss() of the published code divides by every element.
    with pytest.warns(UserWarning, match="mean"):
        published = nn.KLDivLoss()(F.log_softmax(adv / 30, 1), F.softmax(target / 30, 1)) * 900
    torch.testing.assert_close(losses.ard(adv, target), published, rtol=1e-9, atol=0)
    batchmean = losses.ard(adv, target, reduction="batchmean")
    torch.testing.assert_close(batchmean, 7 * published, rtol=1e-9, atol=0)


def make(dtype, *, train, faithful, alpha=1.0, t=30.0, divisor=30):
    student, twin = twins(dtype)
    robust = teacher(dtype)

    def by_hand(x, y, epoch):
        twin.train(train)
        x_adv = ascend(x, uniform_start(x), lambda u: F.cross_entropy(twin(u), y, reduction="sum"))
        twin.train()
        adv = twin(x_adv)
        clean = twin(x) if faithful or alpha < 1 else None
        p = F.softmax(robust(x) / t, 1).detach()
        soft = F.kl_div(F.log_softmax(adv / t, 1), p, reduction="sum") / divisor
        loss = alpha * t * t * soft
        return x_adv, loss if clean is None else loss + (1 - alpha) * F.cross_entropy(clean, y)

    method = methods.build(
        "ard",
        student,
        robust,
        attack_mode="train" if train else "eval",
        faithful=faithful,
        temperature=t,
        reduction="mean" if divisor == 30 else "batchmean",
        teacher_weight=alpha,
        **ATTACK,
    )
    return Case(method, by_hand, [(student, twin)])


@pytest.mark.parametrize(
    "options",
    [
        {"train": True, "faithful": True},
        {"train": False, "faithful": False},
        {"train": True, "faithful": True, "t": 1.0, "divisor": 6},
        {"train": False, "faithful": False, "alpha": 0.5, "t": 1.0},
    ],
)
def test_five_steps_equal_the_published_loop(options):
    assert_same_training(lambda dtype: make(dtype, **options))


def test_train_mode_attack_updates_statistics_at_each_of_its_steps():
    case = make(torch.float64, train=True, faithful=True)
    x, y = batches(torch.float64)[0]
    loss, logs = case.method(x, y)
    assert int(case.pairs[0][0][1].num_batches_tracked) == STEPS + 2
    assert set(logs) == {"loss", "robust_accuracy"}


def test_presets():
    names = ("ard-official", "ard-iad")
    official, iad = (methods.build(n, nn.Identity(), nn.Identity()).options for n in names)
    assert (official.temperature, official.reduction, official.teacher_weight) == (30, "mean", 1)
    assert (official.attack_mode, official.faithful, official.clip_start) == ("train", True, False)
    assert (iad.temperature, iad.reduction, iad.attack_mode) == (1, "batchmean", "train")
    # The published schedule sets 0.01 twice.
    assert methods.preset("ard-official").milestones == (100,)
    assert methods.preset("ard-official").recipe_by_data == {"cifar100": {"batch_size": 256}}
    assert methods.preset("ard").milestones == (100, 150)


def test_bad_input_is_one_sentence():
    with pytest.raises(ValueError, match="clean_logits and y must be given where alpha is below"):
        losses.ard(logits(0), logits(1), alpha=0.5)
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1, but is 2"):
        losses.ard(logits(0), logits(1), alpha=2)
    with pytest.raises(ValueError, match="option temperature must be above 0, but is 0"):
        methods.build("ard", nn.Identity(), nn.Identity(), temperature=0)
