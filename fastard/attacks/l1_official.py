"""The projection onto an L1 ball and the box in the official code's operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Box = tuple[float, float]


def onto_ball_and_box(x: Tensor, u: Tensor, eps: float | Tensor, box: Box = (0.0, 1.0)) -> Tensor:
    """What must be added to displacements u, so that x + u lies in the L1 ball and the box.

    Coordinate i shrinks by d_i = min(max(reach_i, alpha), |u_i|), reach_i being how far it is out
    of the box. The sum of d is piecewise linear in alpha with kinks at every reach and |u|: they
    are sorted, the sums at them accumulated, and the piece is found by bisection. In fp32 equal to
    the bit to `L1_projection` of AutoAttack on the CPU.

    Args:
        x, u: [B, ...]. eps: the radius, or one per sample.

    Croce & Hein 2021 (arXiv 2103.01208), github.com/fra31/auto-attack, autopgd_base.py.
    """
    shape = u.shape
    x, u = x.reshape(len(x), -1), u.reshape(len(u), -1)
    size = u.abs()
    within = torch.min(torch.zeros_like(u), torch.min(box[1] - x - u, x + u - box[0]))
    kinks, order = torch.cat((-within, size), 1).sort(1)
    after = torch.cat((kinks[:, 1:], torch.zeros_like(kinks[:, :1])), 1)
    # How many coordinates follow alpha past each kink: one more at a reach, one less at a size.
    slopes = (2 * (order < u.shape[1]).float() - 1).cumsum(1)
    fixed = -within.sum(1)
    excess = (eps.reshape(-1) if isinstance(eps, Tensor) else eps) - size.sum(1)
    sums = fixed[:, None] + ((after - kinks) * slopes).cumsum(1)
    low = torch.zeros(len(u), 1, dtype=torch.int64, device=u.device)
    high = torch.full_like(low, kinks.shape[1] - 1)
    for _ in range(math.ceil(math.log2(kinks.shape[1]))):
        middle = (low + high) // 2
        short = sums.gather(1, middle) + excess[:, None] < 0
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    slope = slopes.gather(1, (low + 1).clamp(max=kinks.shape[1] - 1))
    alpha = (-sums.gather(1, low) - excess[:, None]) / slope + after.gather(1, low)
    shrunk = -torch.min(torch.max(-within, alpha), size)
    outside = (fixed + excess < 0)[:, None]
    return (u.sign() * torch.where(outside, shrunk, within)).view(shape)
