"""Learning rates as pure functions of the position, so that a resumed run needs no scheduler."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastard.kinds import unknown

SCHEDULES = ("multistep", "cosine", "constant", "onecycle", "cyclic")
# Of OneCycleLR: where the rate starts and ends, as shares of the highest and of the start.
DIV_FACTOR, FINAL_DIV_FACTOR = 25.0, 1e4
PEAKS = {"onecycle": 0.3, "cyclic": 0.5}


def learning_rate(
    schedule: str,
    lr: float,
    epoch: int,
    epochs: int,
    milestones: Sequence[int] = (),
    *,
    gamma: float = 0.1,
    step: int = 0,
    steps: int = 1,
    peak: float | None = None,
) -> float:
    """The learning rate of step `step` of `steps` (from 0) in `epoch` of `epochs` (from 1).

    Equivalent to, stepped once at the end of each epoch::

        torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma)
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)

    and, stepped after every step, with n = epochs * steps::

        OneCycleLR(optimizer, lr, total_steps=n, pct_start=peak, cycle_momentum=False)
        CyclicLR(optimizer, 0, lr, step_size_up=peak * n, step_size_down=(1 - peak) * n,
                 cycle_momentum=False)

    Args:
        lr: the rate that "multistep" and "cosine" start from and the two others rise to.
        peak: the share of all steps after which "onecycle" and "cyclic" are at `lr`; None: 0.3 and
            0.5. The schedule "cyclic" is that of fast adversarial training (Wong et al. 2020).

    Raises ValueError for an unknown schedule.
    """
    if schedule == "constant":
        return lr
    if schedule == "cosine":
        return 0.5 * lr * (1 + math.cos(math.pi * (epoch - 1) / epochs))
    if schedule == "multistep":
        return lr * gamma ** sum(epoch > milestone for milestone in milestones)
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    done, total = (epoch - 1) * steps + step, epochs * steps
    share = PEAKS[schedule] if peak is None else peak
    if schedule == "onecycle":
        return _onecycle(lr, done, total, share)
    rising = share * total
    return lr * (done / rising if done <= rising else (total - done) / (total - rising))


def _onecycle(lr: float, done: int, total: int, peak: float) -> float:
    start = lr / DIV_FACTOR
    # torch's own phases; of a run so short that one has no step the other begins at lr.
    top = max(peak * total - 1, 0.0)
    if done < top:
        return _between(start, lr, done / top)
    falling = total - 1 - top
    return _between(lr, start / FINAL_DIV_FACTOR, (done - top) / falling if falling else 0.0)


def _between(begin: float, end: float, share: float) -> float:
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * share))
