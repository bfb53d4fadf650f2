"""The projection onto a hyperplane and the box [0, 1] by sorting and bisection, in the official
code's operations: its rounding, not only its result, is the official one.

`points`, `w`: [B, n]; `level`: [B]; each returns d with ``w @ (points + d) = level``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastard.kinds import Norm

NEVER = 1e12  # the kink of a coordinate that nothing moves


def _signs(positive: Tensor) -> Tensor:
    return 2 * positive - 1


def _bisected(low: Tensor, high: Tensor, n: int, before: Callable[[Tensor], Tensor]) -> Tensor:
    """The last place, per row, where `before` holds, in as many halvings as n places need."""
    for _ in range(math.ceil(math.log2(n))):
        middle = torch.floor((low + high) / 2)
        still = before(middle.long()[:, None])
        low, high = torch.where(still, middle, low), torch.where(still, high, middle)
    return low.long()


def _range(rows: Tensor, last: float) -> tuple[Tensor, Tensor]:
    low = torch.zeros(len(rows), device=rows.device)
    return low, torch.full_like(low, last)


def _linf(points: Tensor, w: Tensor, level: Tensor) -> Tensor:
    n, t = w.shape[1], points
    sign = _signs((w * t).sum(1) - level >= 0)
    w, level = w * sign[:, None], level * sign
    up, free = (w < 0).float(), (w != 0).float()
    d = (up - t) * free
    room = up - t * (2 * up - 1)
    order = torch.argsort(room, 1)
    level = level - (w * t).sum(1)
    most = (w * d).sum(1)
    widest = order.flip(1)
    w_sorted = w.gather(1, widest)
    slope = torch.cumsum(w_sorted.abs(), 1)
    mass = torch.cumsum(-w_sorted * d.gather(1, widest), 1) + most[:, None]
    at_first = mass[:, -1] - slope[:, -1] * room.gather(1, order[:, :1])[:, 0]
    first = level - at_first > 0
    inner = (level - most > 0) & ~first
    order_, mass_, slope_, room_, level_ = (v[inner] for v in (order, mass, slope, room, level))

    def before(k: Tensor) -> Tensor:
        kink = room_.gather(1, order_.gather(1, n - 1 - k))
        return level_ - (mass_.gather(1, k) - slope_.gather(1, k) * kink)[:, 0] > 0

    place = _bisected(*_range(order_, n - 1), n, before)
    pace = ((level[first] - mass[first, -1]) / -slope[first, -1]).clamp(min=0)[:, None]
    d[first] = (2 * up[first] - 1) * pace
    pace = ((level[inner] - mass[inner, place]) / -slope[inner, place]).clamp(min=0)[:, None]
    up_, d_ = up[inner], d[inner]
    d[inner] = torch.min(pace, d_) * up_ + torch.max(-pace, d_) * (1 - up_)
    return d * free


def _l2(points: Tensor, w: Tensor, level: Tensor) -> Tensor:
    n, t = w.shape[1], points
    over = (w * t).sum(1) - level
    sign = _signs(over >= 0)
    w, over = w * sign[:, None], over * sign
    kink = torch.max(t / w, (t - 1) / w).clamp(min=-NEVER, max=NEVER)
    kink = kink.masked_fill(w.abs() < 1e-8, NEVER)
    kink[kink == -NEVER] *= -1
    sorted_, order = torch.sort(kink, 1)
    following = torch.nn.functional.pad(sorted_[:, 1:], (0, 1))
    sorted_ = sorted_.masked_fill(sorted_ == NEVER, 0)
    following = following.masked_fill(following == NEVER, 0)
    squares = (w**2).gather(1, order)
    whole = squares.sum(1, keepdim=True)
    left = whole - torch.cumsum(squares, 1)
    free = (w.abs() > 1e-8).float()
    d = -(kink * w) * free
    first = -whole * sorted_[:, :1]
    mass = torch.cat(
        (first, torch.cumsum((-following + sorted_) * left, 1) - whole * sorted_[:, :1]), 1
    )
    free_first = mass[:, 0] + over < 0
    inner = ~(free_first | ((d * w).sum(1) + over > 0))
    mass_, over_ = mass[inner], over[inner]
    place = _bisected(*_range(mass_, n - 1), n, lambda k: mass_.gather(1, k)[:, 0] + over_ > 0)
    d[free_first] = -(over[free_first] / whole[free_first][:, 0])[:, None] * w[free_first]
    slope = left[inner, place]
    pace = (mass[inner, place] + over[inner]) / slope + sorted_[inner, place]
    pace[slope == 0] = 0
    pace = pace[:, None]
    gone = (pace > kink[inner]).float()
    d[inner] = d[inner] * gone - pace * w[inner] * (1 - gone)
    return d * free


def _l1(points: Tensor, w: Tensor, level: Tensor) -> Tensor:
    n, t = w.shape[1], points
    over = (w * t).sum(1) - level
    sign = _signs(over >= 0)
    w, over = w * sign[:, None], over * sign
    order = torch.argsort((1 / w).abs().clamp(max=NEVER), 1)
    rank = torch.argsort(order)
    d = (-t + (w < 0).float()) * (w != 0).float()
    gain = torch.min(-w * t, w * (1 - t)).gather(1, order)
    mass = torch.cumsum(torch.cat((over[:, None], gain), 1), 1)
    enough = mass[:, -1] < 0
    mass_ = mass[enough]
    place = _bisected(*_range(mass_, n + 1), n, lambda k: mass_.gather(1, k)[:, 0] > 0)
    edge = order[enough].gather(1, place[:, None])[:, 0]
    part = -mass[enough, place] / w[enough, edge]
    d[enough] = d[enough] * (rank[enough] < place[:, None]).float()
    d[enough, edge] = part
    return d * (w.abs() > 1e-8).float()


PROJECTIONS = {Norm.Linf: _linf, Norm.L2: _l2, Norm.L1: _l1}
