"""Small conversions around the kernels."""

from __future__ import annotations

from torch import Tensor

from fastard import reference


def prepared(x: Tensor, mean: Tensor | None, std: Tensor | None, dtype: object = None) -> Tensor:
    """(x - mean) / std per channel, cast: what `pgd_step_` writes into `feed`."""
    return reference.feed(x, dtype or x.dtype, mean, std)  # type: ignore[arg-type]


def round_towards(v: Tensor, x: Tensor) -> Tensor:
    """v in x's half precision, each value between v and x: ball and box still hold it."""
    return reference.round_towards(v, x)
