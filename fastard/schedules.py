"""Learning rates as pure functions of the epoch, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastard.kinds import unknown

SCHEDULES = ("multistep", "cosine", "constant")


def learning_rate(
    schedule: str, lr: float, epoch: int, epochs: int, milestones: Sequence[int] = ()
) -> float:
    """The learning rate in `epoch` of `epochs`, counted from 1.

    Equivalent to: `torch.optim.lr_scheduler.MultiStepLR(milestones, gamma=0.1)` and
    `CosineAnnealingLR(T_max=epochs)`, stepped once at the end of each epoch.

    Raises ValueError for an unknown schedule.
    """
    if schedule == "constant":
        return lr
    if schedule == "cosine":
        return 0.5 * lr * (1 + math.cos(math.pi * (epoch - 1) / epochs))
    if schedule == "multistep":
        return lr * 0.1 ** sum(epoch > milestone for milestone in milestones)
    raise unknown("schedule", schedule, SCHEDULES)
