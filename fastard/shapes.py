"""One value per sample, or per channel, in the shape that multiplies images."""

from __future__ import annotations

from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[B] (or [B, 1, ...]) as [B, 1, ..., 1], of as many dimensions as `like`."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """[C] as [1, C, 1, ..., 1], of as many dimensions as `like`."""
    return values.reshape(1, -1, *[1] * (like.dim() - 2))
