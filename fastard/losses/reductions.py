"""How a divergence over [B, C] becomes one number, and what losses refuse."""

from __future__ import annotations

from fastard import rows

REDUCTIONS = ("mean", "batchmean", "sum")
"""Divided by B * C, divided by B, not divided."""


def times_parts(scale: float, reduction: str) -> float:
    """The scale of a part's loss by which the mean over the parts is the loss of the whole batch.

    It is the scale itself but for a "sum" over a batch that several processes share.
    """
    return scale * rows.parts() if reduction == "sum" else scale


def require_share(value: float, name: str = "alpha") -> None:
    """Raises ValueError for a weight outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, but is {value}.")


def require_weight(value: float, name: str = "beta") -> None:
    """Raises ValueError for a negative weight."""
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, but is {value}.")
