"""APGD's L2 and L1 steps rounded as the official code rounds them, so that images are equal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Box = tuple[float, float]


def length(t: Tensor) -> Tensor:
    """Each sample's L2 norm, as a column."""
    return (t**2).reshape(len(t), -1).sum(-1).sqrt().view(-1, *[1] * (t.dim() - 1))


def _in_l2_ball(at: Tensor, x: Tensor, eps: float | Tensor, box: Box) -> Tensor:
    moved = at - x
    norm = length(moved)
    inside = torch.min(torch.full_like(norm, 1.0) * eps, norm)
    return (x + moved / (norm + 1e-12) * inside).clamp(*box)


def l2_step(
    x_adv: Tensor, x_old: Tensor, grad: Tensor, x: Tensor, eps: float | Tensor, size: Tensor,
    fresh: float, box: Box,
) -> Tensor:  # fmt: skip
    """The next point; size is [B]."""
    stride = size.view(-1, *[1] * (x.dim() - 1))
    moved = _in_l2_ball(x_adv + stride * (grad / (length(grad) + 1e-12)), x, eps, box)
    mixed = x_adv + (moved - x_adv) * fresh + (x_adv - x_old) * (1 - fresh)
    return _in_l2_ball(mixed, x, eps, box)


def l1_correction(x: Tensor, u: Tensor, eps: float | Tensor, box: Box) -> Tensor:
    """What must be added to displacements u, so that x + u lies in the L1 ball and the box.

    Coordinate i shrinks by d_i = min(max(reach_i, alpha), |u_i|), reach_i being how far it is out
    of the box. The sum of d is piecewise linear in alpha with kinks at every reach and |u|: they
    are sorted, the sums at them accumulated, and the piece is found by bisection.
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
    excess = (eps - size.sum(1, keepdim=True))[:, 0]
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


def l1_step(
    x_adv: Tensor, grad: Tensor, x: Tensor, eps: float | Tensor, size: Tensor, share: Tensor,
    box: Box,
) -> Tensor:  # fmt: skip
    """The next point; size and share, the part of coordinates to move, are [B]."""
    column = (-1, *[1] * (x.dim() - 1))
    n = x[0].numel()
    ranked = grad.abs().reshape(len(grad), -1).sort(-1)[0]
    skipped = ((1.0 - share) * n).clamp(0, n - 1).long()
    threshold = ranked.gather(1, skipped[:, None]).view(column)
    signs = (grad * (grad.abs() >= threshold).float()).sign()
    moving = signs.abs().reshape(len(grad), -1).sum(-1).view(column)
    u = x_adv + size.view(column) * signs / (moving + 1e-10) - x
    return x + u + l1_correction(x, u, eps, box)


def l1_start(x: Tensor, noise: Tensor, eps: float | Tensor, box: Box) -> Tensor:
    """x plus noise, projected."""
    return x + noise + l1_correction(x, noise, eps, box)
