"""APGD's step and bookkeeping in plain PyTorch: the specification of their kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastard import reference
from fastard.shapes import per_sample

# The rows of `marks`, [9, B]: how each sample's step size follows its losses.
BEST_LOSS, SIZE, BACK = 0, 1, 2
PREVIOUS, RISES, BEST_THEN = 3, 4, 5  # Linf and L2
SHARE, MOVED_THEN, LEAST, RADIUS, MOVED_BEST, MOVED_NOW = 3, 4, 5, 6, 7, 8  # L1
MARKS = 9


def l1_moved(there: Tensor, u: Tensor, new: Tensor, x: Tensor) -> Tensor:
    """How many coordinates of each sample, displaced by u to `there` and projected to `new`, differ
    from x once rounded as the official code rounds, there - (u - kept): also those that rounding
    alone moves. [B] int64."""
    return ((new != x) | (there - u != x)).flatten(1).sum(1)


def l1_step(
    x_adv: Tensor, grad: Tensor, x: Tensor, eps: Tensor, size: Tensor, share: Tensor,
    clip_min: float, clip_max: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A step along the signs of each sample's `share` of largest gradients, then projected, and
    how many coordinates of each sample it moved, as `l1_moved` counts."""
    key = grad.abs().nan_to_num(nan=0.0, posinf=float("inf")).flatten(1)
    n = key.shape[1]
    skipped = ((1 - share.expand(len(x))) * n).clamp(0, n - 1).long()
    threshold = key.sort(1)[0].gather(1, skipped[:, None])
    sign = torch.where(key >= threshold, grad.flatten(1).sign(), 0.0)
    move = size.reshape(-1, 1) * sign / (sign.abs().sum(1, keepdim=True) + reference.TINY_COUNT)
    u = x_adv + move.view_as(x) - x
    new = reference.project_l1(u, x, eps, clip_min, clip_max)
    return new, l1_moved(x + u, u, new, x).to(x.dtype)


def apgd_step(
    x_adv: Tensor, x_old: Tensor | None, grad: Tensor, x: Tensor, eps: Tensor, size: Tensor,
    norm: str, fresh: float, clip_min: float, clip_max: float, share: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The next point of x_adv; x_adv itself is then the old one (L1 needs neither)."""
    if x_adv.numel() == 0:
        return x_adv.clone()
    if norm == "L1":
        assert share is not None
        return l1_step(x_adv, grad, x, eps, size, share, clip_min, clip_max)[0]
    assert x_old is not None
    moved = reference.pgd_step(x_adv, grad, x, eps, size, norm, clip_min, clip_max)
    mixed = x_adv + (moved - x_adv) * fresh + (x_adv - x_old) * (1 - fresh)
    still = torch.zeros_like(grad)
    return reference.pgd_step(mixed, still, x, eps, 0.0, norm, clip_min, clip_max)


def halved(marks: Tensor, loss: Tensor, window: int, rho: float) -> Tensor:
    """The marks after a loss in Linf or L2; marks[BEST_LOSS] is the new one already."""
    new = marks.clone()
    new[RISES] += loss > marks[PREVIOUS]
    new[PREVIOUS] = loss
    if window:
        stuck = (marks[BACK] == 0) & (marks[BEST_THEN] >= new[BEST_LOSS])
        back = (new[RISES] <= rho * window) | stuck
        new[BACK], new[BEST_THEN] = back.to(new.dtype), new[BEST_LOSS]
        new[SIZE] = torch.where(back, new[SIZE] / 2, new[SIZE])
        new[RISES] = 0
    return new


def thinned(marks: Tensor, n: int) -> Tensor:
    """The marks after a look back in L1, in samples of n coordinates."""
    new = marks.clone()
    moved = marks[MOVED_BEST]
    sparser = moved / marks[MOVED_THEN] < 0.95
    smaller = torch.maximum(marks[SIZE] / 1.5, marks[LEAST])
    new[SHARE] = moved / n / 1.5
    new[SIZE] = torch.where(sparser, marks[RADIUS], smaller)
    new[MOVED_THEN], new[BACK] = moved, sparser.to(new.dtype)
    return new


def apgd_keep(
    x_adv: Tensor, grad: Tensor, x: Tensor, loss: Tensor, correct: Tensor,
    best: Tensor, best_grad: Tensor, fooled: Tensor, robust: Tensor, marks: Tensor,
    sparse: bool, window: int, rho: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(best, best_grad, fooled, robust, marks) after a query; the arguments stay as they are."""
    if x_adv.numel() == 0:
        return best.clone(), best_grad.clone(), fooled.clone(), robust.clone(), marks.clone()
    higher = loss > marks[BEST_LOSS]
    best = torch.where(per_sample(higher, x), x_adv, best)
    best_grad = torch.where(per_sample(higher, x), grad, best_grad)
    fooled = torch.where(per_sample(correct, x), fooled, x_adv)
    marks = marks.clone()
    marks[BEST_LOSS] = torch.where(higher, loss, marks[BEST_LOSS])
    marks[MOVED_BEST] = torch.where(higher, marks[MOVED_NOW], marks[MOVED_BEST])
    if not sparse:
        marks = halved(marks, loss, window, rho)
    elif window:
        marks = thinned(marks, x[0].numel())
    return best, best_grad, fooled, robust & correct, marks
