"""Outer losses of adversarial training and robust distillation, on the fused `ops.distill_kl`."""

from __future__ import annotations

from fastard.losses.adaad import adaad
from fastard.losses.reductions import REDUCTIONS
from fastard.losses.rslad import rslad
from fastard.losses.trades import trades

__all__ = ["REDUCTIONS", "adaad", "rslad", "trades"]
