"""Outer losses of adversarial training and robust distillation, on the fused `ops.distill_kl`."""

from __future__ import annotations

from fastard.losses.adaad import adaad
from fastard.losses.adaiad import adaiad
from fastard.losses.advfunmatch import DIRECTIONS as KL_DIRECTIONS
from fastard.losses.advfunmatch import advfunmatch
from fastard.losses.darht import darht
from fastard.losses.dgad import corrected, dgad
from fastard.losses.igdm import DISTANCES as IGDM_DISTANCES
from fastard.losses.igdm import igdm
from fastard.losses.mtard import mtard, negative_entropy
from fastard.losses.reductions import REDUCTIONS
from fastard.losses.rslad import rslad
from fastard.losses.saad import ENTROPIES, entropy, saad
from fastard.losses.trades import trades

__all__ = [
    "ENTROPIES", "IGDM_DISTANCES", "KL_DIRECTIONS", "REDUCTIONS", "adaad", "adaiad", "advfunmatch",
    "corrected", "darht", "dgad", "entropy", "igdm", "mtard", "negative_entropy", "rslad", "saad",
    "trades",
]  # fmt: skip
