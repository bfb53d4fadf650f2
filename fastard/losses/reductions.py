"""How a divergence over [B, C] becomes one number."""

from __future__ import annotations

REDUCTIONS = ("mean", "batchmean", "sum")
"""Divided by B * C, divided by B, not divided."""
