"""FAB's projection and iteration in plain PyTorch: the kernels' specification, right in fp64."""

from __future__ import annotations

import torch
from torch import Tensor

TINY_NORM = 1e-8  # the official floor of a projection's length
TINY_SLOPE = 1e-8  # in L2 and L1, coordinates of smaller gradient stay where they are


def _at(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[:, None])[:, 0]


def _crossing(mass: Tensor, wanted: Tensor) -> Tensor:
    """The first place where the growing `mass` reaches `wanted`; the last where it never does."""
    return (mass < wanted[:, None]).sum(1).clamp(max=mass.shape[1] - 1)


def _pace(weight: Tensor, kink: Tensor, wanted: Tensor) -> Tensor:
    """lambda with ``sum weight * min(lambda, kink) = wanted``, inf where there is none."""
    kink, order = kink.sort(1)
    weight = weight.gather(1, order)
    left = weight.flip(1).cumsum(1).flip(1)
    gone = (weight * kink).cumsum(1) - weight * kink
    first = _crossing(gone + left * kink, wanted)
    return (wanted - _at(gone, first)) / _at(left, first)


def projection(
    points: Tensor, w: Tensor, gap: Tensor, norm: str, lo: float = 0.0, hi: float = 1.0
) -> Tensor:
    """The smallest d, [B, n], with ``w @ d = -gap`` that keeps points + d in the box.

    Where the box allows no such d, every coordinate goes as far as it can. A gradient or a gap that
    is not finite moves nothing.

    Args:
        points, w: [B, n]; the points lie in the box.
        gap: [B], ``w @ points - b`` of the hyperplane ``w @ z = b``.
        norm: "Linf", "L2", "L1"; of several smallest d in L1, the one that moves coordinates of
            equal \\|w\\| by equal shares of their room.

    Croce & Hein 2020 (arXiv 1907.02044), section 3.1; github.com/fra31/auto-attack,
    fab_projections.py, by sorting and bisection.
    """
    gap, w = gap.where(gap.isfinite(), 0.0), w.where(w.isfinite(), 0.0)
    w = torch.where(gap[:, None] >= 0, w, -w)
    wanted, size = gap.abs(), w.abs()
    room = torch.where(w > 0, points - lo, hi - points).clamp(min=0)
    movable = size > (0.0 if norm == "Linf" else TINY_SLOPE)
    enough = (size * room * movable).sum(1) > wanted
    if norm == "L1":
        ranked, order = size.sort(1, descending=True)
        mass = (ranked * room.gather(1, order)).cumsum(1)
        edge = _at(ranked, _crossing(mass, wanted))[:, None]
        full, tied = (size > edge) * size * room, (size == edge) * size * room
        share = (wanted - full.sum(1)) / tied.sum(1)
        share = share.where(enough, 1.0)[:, None]
        part = torch.where(size > edge, 1.0, torch.where(size == edge, share, 0.0))
        move = room * part.where(enough[:, None], 1.0)
    else:
        pace = torch.ones_like(size) if norm == "Linf" else size
        kink = torch.where(movable, room / pace, 1e12)
        factor = _pace(size * pace, kink, wanted).where(enough, torch.inf)[:, None]
        move = torch.minimum(torch.where(movable, factor * pace, 0.0), room)
    return torch.where(movable, torch.where(w > 0, -move, move), 0.0)


def length(d: Tensor, norm: str) -> Tensor:
    """[B], the norm of each row of d, [B, n]."""
    if norm == "Linf":
        return d.abs().amax(1)
    return d.square().sum(1).sqrt() if norm == "L2" else d.abs().sum(1)


def step(
    at: Tensor, x: Tensor, w: Tensor, gap: Tensor, norm: str,
    alpha_max: float, eta: float, lo: float, hi: float,
) -> Tensor:  # fmt: skip
    """[B, n]: both points' projections, overshot by eta, and mixed."""
    further = gap + (torch.where(w.isfinite(), w, 0.0) * (x - at)).sum(1)
    one, two = (projection(p, w, g, norm, lo, hi) for p, g in ((at, gap), (x, further)))
    a1, a2 = (length(d, norm).clamp(min=TINY_NORM)[:, None] for d in (one, two))
    alpha = (a1 / (a1 + a2)).clamp(0.0, alpha_max)
    return ((at + eta * one) * (1 - alpha) + (x + eta * two) * alpha).clamp(lo, hi)


def iteration(
    at: Tensor, best: Tensor, size: Tensor, tests: Tensor, trying: Tensor,
    x: Tensor, grad: Tensor | None, gap: Tensor | None, fooled: Tensor,
    norm: str, n_iter: int, limit: float, alpha_max: float, eta: float, beta: float,
    clip_min: float, clip_max: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """at, best, size, tests and trying after one iteration; as `fastard.ops.fab_step_`."""
    flat, origin = at.flatten(1), x.flatten(1)
    active = (tests < n_iter) & ~(size <= limit)
    won = active & trying & fooled
    tested = won if grad is None else active & trying
    tests = tests + tested.to(tests.dtype)
    found = length(flat - origin, norm)
    kept = won & (found < size)
    best = torch.where(kept[:, None], flat, best.flatten(1)).view_as(at)
    size = torch.where(kept, found, size)
    after = torch.where(won[:, None], origin + (flat - origin) * beta, flat)
    trying = trying & ~won
    if grad is not None and gap is not None:
        goes = active & ~won & (tests < n_iter)
        moved = step(flat, origin, grad.flatten(1), gap, norm, alpha_max, eta, clip_min, clip_max)
        after, trying = torch.where(goes[:, None], moved, after), trying | goes
    return after.view_as(at), best, size, tests, trying
