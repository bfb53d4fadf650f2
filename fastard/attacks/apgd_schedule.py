"""When Auto-PGD looks back at its losses, and what its samples start with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastard import reference_apgd as rows
from fastard.kinds import Norm
from fastard.ops.pgd_step import as_bound


def windows(steps: int) -> tuple[int, int, int]:
    """APGD's first window, by how much each further one is shorter, and the least."""
    first, shorter, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    return first, shorter, least


def checkpoints(steps: int, sizes: tuple[int, int, int] | None = None) -> dict[int, int]:
    """Each iteration after which APGD looks back (counted from 0), and on how many.

    The first window is 0.22 of the steps, each further one 0.03 shorter, down to 0.06.
    """
    window, shorter, least = windows(steps) if sizes is None else sizes
    found, at = {}, window - 1
    while at < steps:
        found[at] = window
        window = max(window - shorter, least)
        at += window
    return found


def sparse_checkpoints(steps: int) -> dict[int, int]:
    """The same for L1: after every 0.04 of the steps."""
    every = max(int(0.04 * steps), 1)
    return dict.fromkeys(range(every - 1, steps, every), every)


def large_radii(eps: float | Tensor, steps: int) -> list[tuple[float | Tensor, int]]:
    """The radii of the L1 schedule from 3 eps over 2 eps to eps, and the steps at each."""
    wide = math.ceil(0.3 * steps)
    return [(3.0 * eps, wide), (2.0 * eps, wide), (1.0 * eps, steps - 2 * wide)]


def first_marks(
    loss: Tensor, x: Tensor, eps: float | Tensor, norm: Norm, counted: Tensor, random: bool
) -> Tensor:
    """The marks, [9, B], before the first step; `counted`, [B]: L1, the coordinates that the start
    moved, of which the first share follows unless it is `random`."""
    marks = torch.zeros(rows.MARKS, len(loss), dtype=x.dtype, device=x.device)
    radius = as_bound(eps, x)
    marks[rows.BEST_LOSS], marks[rows.BACK] = loss, 1.0
    if norm != Norm.L1:
        # The first iteration's loss is compared with 0, as the official code does.
        marks[rows.SIZE], marks[rows.BEST_THEN] = 2 * radius, loss
        return marks
    n = x[0].numel() if len(x) else 1
    counted = counted.to(x.dtype)
    marks[rows.SIZE] = marks[rows.RADIUS] = radius
    marks[rows.LEAST] = as_bound(eps / 10, x)
    marks[rows.SHARE] = 0.2 if random else counted / n / 1.5
    marks[rows.MOVED_THEN] = n if random else counted
    marks[rows.MOVED_BEST] = marks[rows.MOVED_NOW] = counted
    return marks
