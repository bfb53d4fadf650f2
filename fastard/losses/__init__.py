"""Outer losses of adversarial training and robust distillation, on the fused `ops.distill_kl`."""

from __future__ import annotations

from fastard.losses.adaad import adaad
from fastard.losses.adaiad import adaiad
from fastard.losses.advfunmatch import DIRECTIONS as KL_DIRECTIONS
from fastard.losses.advfunmatch import advfunmatch
from fastard.losses.akd2 import akd2
from fastard.losses.ard import ard
from fastard.losses.darht import darht
from fastard.losses.dgad import corrected, dgad
from fastard.losses.ensemble import ENSEMBLES, ensemble_logits
from fastard.losses.funmatch import funmatch
from fastard.losses.hat import hat
from fastard.losses.iad import iad_1, iad_2, teacher_trust
from fastard.losses.igdm import DISTANCES as IGDM_DISTANCES
from fastard.losses.igdm import igdm
from fastard.losses.kd import kd
from fastard.losses.lbgat import lbgat
from fastard.losses.mart import mart
from fastard.losses.mtard import mtard, negative_entropy
from fastard.losses.reductions import REDUCTIONS
from fastard.losses.rslad import rslad
from fastard.losses.saad import ENTROPIES, entropy, saad
from fastard.losses.trades import trades

__all__ = [
    "ENSEMBLES", "ENTROPIES", "IGDM_DISTANCES", "KL_DIRECTIONS", "REDUCTIONS", "adaad",
    "adaiad", "advfunmatch", "akd2", "ard", "corrected", "darht", "dgad", "ensemble_logits",
    "entropy", "funmatch", "hat", "iad_1", "iad_2", "igdm", "kd", "lbgat", "mart", "mtard",
    "negative_entropy", "rslad", "saad", "teacher_trust", "trades",
]  # fmt: skip
