"""APGD's L2 and L1 steps rounded as the official code rounds them, so that images are equal."""

from __future__ import annotations

import torch
from torch import Tensor

from fastard.attacks.l1_official import Box, onto_ball_and_box
from fastard.shapes import per_sample


def length(t: Tensor) -> Tensor:
    """Each sample's L2 norm, as a column."""
    return per_sample((t**2).reshape(len(t), -1).sum(-1).sqrt(), t)


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
    stride = per_sample(size, x)
    moved = _in_l2_ball(x_adv + stride * (grad / (length(grad) + 1e-12)), x, eps, box)
    mixed = x_adv + (moved - x_adv) * fresh + (x_adv - x_old) * (1 - fresh)
    return _in_l2_ball(mixed, x, eps, box)


def l1_step(
    x_adv: Tensor, grad: Tensor, x: Tensor, eps: float | Tensor, size: Tensor, share: Tensor,
    box: Box,
) -> Tensor:  # fmt: skip
    """The next point; size and share, the part of coordinates to move, are [B]."""
    n = x[0].numel()
    ranked = grad.abs().reshape(len(grad), -1).sort(-1)[0]
    skipped = ((1.0 - share) * n).clamp(0, n - 1).long()
    threshold = per_sample(ranked.gather(1, skipped[:, None]), x)
    signs = (grad * (grad.abs() >= threshold).float()).sign()
    moving = per_sample(signs.abs().reshape(len(grad), -1).sum(-1), x)
    u = x_adv + per_sample(size, x) * signs / (moving + 1e-10) - x
    return x + u + onto_ball_and_box(x, u, eps, box)


def l1_start(x: Tensor, noise: Tensor, eps: float | Tensor, box: Box) -> Tensor:
    """x plus noise, projected."""
    return x + noise + onto_ball_and_box(x, noise, eps, box)
