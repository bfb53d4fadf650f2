"""Outer losses of adversarial training and robust distillation, on the fused `ops.distill_kl`."""

from __future__ import annotations

from fastard.losses.akd2 import akd2
from fastard.losses.ard import ard
from fastard.losses.ensemble import ENSEMBLES, ensemble_logits
from fastard.losses.funmatch import funmatch
from fastard.losses.hat import hat
from fastard.losses.iad import iad_1, iad_2, teacher_trust
from fastard.losses.kd import kd
from fastard.losses.lbgat import lbgat
from fastard.losses.mart import mart
from fastard.losses.reductions import REDUCTIONS
from fastard.losses.rslad import rslad
from fastard.losses.trades import trades

__all__ = [
    "ENSEMBLES", "REDUCTIONS", "akd2", "ard", "ensemble_logits", "funmatch", "hat", "iad_1",
    "iad_2", "kd", "lbgat", "mart", "rslad", "teacher_trust", "trades",
]  # fmt: skip
