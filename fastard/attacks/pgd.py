"""Projected gradient descent over a gradient function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastard import ops
from fastard.kinds import Norm
from fastard.shapes import per_channel


@dataclass(frozen=True)
class Moves:
    """What a PGD step needs beside its buffers: radius, step size, norm and box."""

    eps: float | Tensor
    alpha: float | Tensor
    norm: Norm
    clip_min: float
    clip_max: float
    l1_sparsity: float = 0.2


def pgd(
    gradient: Callable[[Tensor], Tensor],
    x: Tensor,
    x_adv: Tensor,
    feed: Tensor | None,
    moves: Moves,
    steps: int,
    *,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    broken: Tensor | None = None,
) -> None:
    """Moves x_adv `steps` times along `gradient`, in place.

    Equivalent to (Linf), `steps` times:
    ``x_adv = (x_adv + alpha * gradient(x_adv).sign()).clamp(x - eps, x + eps).clamp(0, 1)``

    Args:
        gradient: the gradient in the model's input, pixels or their prepared form.
        x, x_adv: the clean images and the start, one dtype and layout.
        feed: the buffer for (x_adv - mean) / std, which each step writes, or None: the model reads
            x_adv itself.
        broken: bool [B]; set where a sample's gradient was not finite.
    """
    source = x_adv if feed is None else feed
    # A per-channel factor keeps every sign, but not L2's and L1's directions.
    pixels = None
    if std is not None and moves.norm != Norm.Linf:
        pixels = per_channel(std.to(x.dtype), x)
    for _ in range(steps):
        grad = gradient(source)
        if pixels is not None:
            grad = grad / pixels
        if broken is not None:
            broken |= ~torch.isfinite(grad).flatten(1).all(1)
        ops.pgd_step_(
            x_adv, grad, x, moves.eps, moves.alpha, moves.norm, moves.clip_min, moves.clip_max,
            l1_sparsity=moves.l1_sparsity, feed=feed, mean=mean, std=std)  # fmt: skip
