"""The projection onto an L1 ball and the box [0, 1] in the official code's operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def onto_ball_and_box(x: Tensor, delta: Tensor, eps: float | Tensor) -> Tensor:
    """The correction r for which x + delta + r is nearest to x + delta in ball and box.

    Sorts where each pixel reaches the box or vanishes, and bisects among these places; in fp32.
    Equal to the bit to `L1_projection` of AutoAttack on the CPU.

    Args:
        x, delta: [B, ...]. eps: the radius, or one per sample.

    Croce & Hein 2021 (arXiv 2103.01208), github.com/fra31/auto-attack, autopgd_base.py.
    """
    at, move = (t.float().reshape(len(t), -1) for t in (x, delta))
    # How far each size may yet shrink: none of it where the pixel is outside the box.
    outside = torch.min(torch.zeros_like(move), torch.min(1 - at - move, at + move))
    whole = -move.abs()
    shift = outside.clone()
    places, order = torch.sort(-torch.cat((outside, whole), 1), dim=1)
    nexts = torch.cat((places[:, 1:], torch.zeros(len(at), 1, device=at.device)), 1)
    slope = (2 * (order < outside.shape[1]).float() - 1).cumsum(dim=1)
    inside = -outside.sum(dim=1)
    room = eps - move.abs().sum(dim=1)
    rows = (inside + room < 0).nonzero()[:, 0]
    mass = inside.unsqueeze(-1) + torch.cumsum((nexts - places) * slope, dim=1)
    if len(rows):
        low = torch.zeros_like(rows).float()
        high = torch.ones_like(low) * (places.shape[1] - 1)
        for _ in range(math.ceil(math.log2(places.shape[1]))):
            middle = torch.floor((low + high) / 2.0)
            below = mass[rows, middle.long()] + room[rows] < 0
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        last = low.long()
        threshold = (-mass[rows, last] - room[rows]) / slope[rows, last + 1] + nexts[rows, last]
        shift[rows] = -torch.min(torch.max(-outside[rows], threshold.unsqueeze(-1)), -whole[rows])
    return (move.sign() * shift).view(x.shape)
