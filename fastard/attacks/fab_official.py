"""FAB in the official code's operations and their order, so that its bits are the official ones."""

from __future__ import annotations

import torch
from torch import Tensor

from fastard.attacks.fab import FAR, Walk
from fastard.attacks.fab_projections import PROJECTIONS
from fastard.attacks.search import Search
from fastard.kinds import Norm
from fastard.shapes import per_sample


def official_size(d: Tensor, norm: Norm) -> Tensor:
    """[B], as the official code sums it."""
    flat = d.reshape(len(d), -1)
    if norm == Norm.Linf:
        return flat.abs().max(1)[0]
    return (flat**2).sum(-1).sqrt() if norm == Norm.L2 else flat.abs().sum(-1)


def official_start(x: Tensor, noise: Tensor, eps: float, norm: Norm) -> Tensor:
    """As `fab_start`, rounded as the official code rounds it."""
    t = 2 * noise - 1 if norm == Norm.Linf else noise
    radius = per_sample(torch.min(_filled(x, FAR), _filled(x, eps)), x)
    moved = radius * t / per_sample(official_size(t, norm), x)
    return (x + (moved / 2 if norm == Norm.L1 else moved * 0.5)).clamp(0.0, 1.0)


def _filled(x: Tensor, value: float) -> Tensor:
    return torch.full((len(x),), value, dtype=x.dtype, device=x.device)


def _hyperplanes(
    search: Search, at: Tensor, y: Tensor, goals: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gaps to the classes, [B, K], and their gradients, [B, K, ...]; of goals, K = 1."""
    logits, rows = search.forward(at), torch.arange(len(at))
    if goals is not None:
        seed = torch.zeros_like(logits)
        seed[rows, y], seed[rows, goals] = -1.0, 1.0
        gap = -(logits[rows, y] - logits[rows, goals])
        return gap[:, None], search.vjp(seed)[:, None]
    classes, grads = logits.shape[1], []
    for k in range(classes):
        seed = torch.zeros_like(logits)
        seed[:, k] = 1.0
        grads.append(search.vjp(seed, retain=k < classes - 1))
    every = torch.stack(grads, 1)
    gap = logits - logits[rows, y][:, None]
    gap[rows, y] = 1e10
    return gap, every - every[rows, y][:, None]


def _nearest(gap: Tensor, grad: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    flat = grad.reshape(*grad.shape[:2], -1)
    if norm == Norm.Linf:
        size = flat.abs().sum(-1)
    else:
        size = (flat**2).sum(-1).sqrt() if norm == Norm.L2 else flat.abs().max(2)[0]
    place = (gap.abs() / (1e-12 + size)).min(1)[1]
    rows = torch.arange(len(gap))
    return gap[rows, place], grad[rows, place]


def _stepped(at: Tensor, x: Tensor, gap: Tensor, grad: Tensor, walk: Walk) -> Tensor:
    rows = len(x)
    level = -gap + (grad * at).reshape(rows, -1).sum(-1)
    w = grad.reshape(rows, -1)
    points = torch.cat((at.reshape(rows, -1), x.reshape(rows, -1)))
    moves = PROJECTIONS[walk.norm](points, torch.cat((w, w)), torch.cat((level, level)))
    d_at, d_x = moves[:rows].reshape(x.shape), moves[rows:].reshape(x.shape)
    a = official_size(moves, walk.norm).clamp(min=1e-8)
    a1, a2 = per_sample(a[:rows], x), per_sample(a[rows:], x)
    alpha = (a1 / (a1 + a2)).clamp(0.0, walk.alpha_max)
    mixed = (at + walk.eta * d_at) * (1 - alpha) + (x + d_x * walk.eta) * alpha
    return mixed.clamp(0.0, 1.0)


def official_fab(
    search: Search, x: Tensor, y: Tensor, walk: Walk,
    goals: Tensor | None = None, start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `fab`, all rows for all iterations, each with a forward of its own for the test."""
    at = x.clone() if start is None else start
    best, size = x.clone(), _filled(x, FAR)
    for _ in range(walk.n_iter):
        gap, grad = _nearest(*_hyperplanes(search, at, y, goals), walk.norm)
        at = _stepped(at, x, gap, grad, walk)
        won = (search.logits(at).max(1)[1] != y).nonzero()[:, 0]
        if len(won) == 0:
            continue
        found, origin = at[won], x[won]
        length = official_size(found - origin, walk.norm)
        closer = length < size[won]
        best[won] = torch.where(per_sample(closer, x), found, best[won])
        size[won] = torch.where(closer, length, size[won])
        at[won] = origin + (found - origin) * walk.beta
    return best, size
