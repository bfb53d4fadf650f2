"""Learning rates beside torch's schedulers, step by step."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from fastard.training.schedules import learning_rate

EPOCHS, STEPS, LR = 6, 5, 0.2
TOTAL = EPOCHS * STEPS


def optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR, momentum=0.9)


@pytest.mark.parametrize(
    ("schedule", "settings", "theirs", "per_step"),
    [
        ("constant", {}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0), False),
        (
            "multistep",
            {"milestones": (2, 4), "gamma": 0.3},
            lambda o: lr_scheduler.MultiStepLR(o, [2, 4], gamma=0.3),
            False,
        ),
        ("cosine", {}, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=EPOCHS), False),
        (
            "onecycle",
            {},
            lambda o: lr_scheduler.OneCycleLR(o, LR, total_steps=TOTAL, cycle_momentum=False),
            True,
        ),
        (
            "onecycle",
            {"peak": 0.45},
            lambda o: lr_scheduler.OneCycleLR(
                o, LR, total_steps=TOTAL, pct_start=0.45, cycle_momentum=False
            ),
            True,
        ),
        (
            "cyclic",
            {},
            lambda o: lr_scheduler.CyclicLR(o, 0.0, LR, TOTAL / 2, TOTAL / 2, cycle_momentum=False),
            True,
        ),
        (
            "cyclic",
            {"peak": 0.4},
            lambda o: lr_scheduler.CyclicLR(
                o, 0.0, LR, 0.4 * TOTAL, 0.6 * TOTAL, cycle_momentum=False
            ),
            True,
        ),
    ],
)
def test_rates_are_those_of_torch(schedule, settings, theirs, per_step):
    sgd = optimizer()
    scheduler = theirs(sgd)
    for epoch in range(1, EPOCHS + 1):
        for step in range(STEPS):
            ours = learning_rate(schedule, LR, epoch, EPOCHS, step=step, steps=STEPS, **settings)
            assert ours == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-7, abs=1e-9)
            sgd.step()
            if per_step:
                scheduler.step()
        if not per_step:
            scheduler.step()


@pytest.mark.parametrize("schedule", ["onecycle", "cyclic"])
def test_a_run_of_one_step_has_a_rate(schedule):
    assert 0 <= learning_rate(schedule, LR, 1, 1, step=0, steps=1) <= LR


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match=r"unknown schedule 'cosin' \(did you mean 'cosine'\?\)"):
        learning_rate("cosin", LR, 1, 1)
