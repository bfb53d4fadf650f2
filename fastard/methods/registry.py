"""Methods and presets by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fastard.kinds import unknown
from fastard.methods.adaad import AdaAD
from fastard.methods.adaiad import AdaIAD
from fastard.methods.advfunmatch import AdvFunMatch
from fastard.methods.akd import AKD
from fastard.methods.akd2 import AKD2
from fastard.methods.ard import ARD
from fastard.methods.b_mtard import BMTARD
from fastard.methods.base import Method
from fastard.methods.darht import DARHT
from fastard.methods.dgad import DGAD
from fastard.methods.fgsm_rs import FGSMRS
from fastard.methods.free import Free
from fastard.methods.funmatch import FunMatch
from fastard.methods.hat import HAT
from fastard.methods.iad_1 import IAD1
from fastard.methods.iad_2 import IAD2
from fastard.methods.igdm import IGDM
from fastard.methods.kd import KD
from fastard.methods.lbgat import LBGAT
from fastard.methods.mart import MART
from fastard.methods.mtard import MTARD
from fastard.methods.n_fgsm import NFGSM
from fastard.methods.natural import Natural
from fastard.methods.pgd_at import PGDAT
from fastard.methods.recipes import Preset
from fastard.methods.rslad import RSLAD
from fastard.methods.rslad_batchmean import RSLADBatchmean
from fastard.methods.saad import SAAD
from fastard.methods.trades import TRADES

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Natural,
        PGDAT,
        TRADES,
        RSLAD,
        RSLADBatchmean,
        AdaAD,
        AdaIAD,
        AdvFunMatch,
        DARHT,
        IGDM,
        MTARD,
        BMTARD,
        DGAD,
        SAAD,
        MART,
        ARD,
        IAD1,
        IAD2,
        AKD2,
        AKD,
        LBGAT,
        HAT,
        KD,
        FunMatch,
        FGSMRS,
        NFGSM,
        Free,
    )
}
PRESETS: dict[str, Preset] = {
    preset.name: preset for method in METHODS.values() for preset in method.presets
}


def names() -> list[str]:
    """The names of the methods; `presets` has those of whole recipes."""
    return list(METHODS)


def presets() -> list[str]:
    """The names of the recipes; every method has one of its own name."""
    return list(PRESETS)


def preset(name: str) -> Preset:
    """Returns the recipe of this name; raises ValueError listing the known names."""
    if name not in PRESETS:
        raise unknown("method", name, PRESETS)
    return PRESETS[name]


def build(
    name: str,
    student: nn.Module,
    teachers: nn.Module | Sequence[nn.Module] = (),
    **options: Any,
) -> Method:
    """Builds the method or preset of this name around a student and its teachers.

    Args:
        name: one of `names()`, or one of `presets()` for a method with the preset's options.
        student: the network to train.
        teachers: the networks to learn from, as many as the method takes; one may stand alone.
        options: the method's options, over those of the preset.

    Raises ValueError for an unknown name or option (it lists the known ones), an option out of
    range or a wrong number of teachers, and TypeError for a network that is none.
    """
    recipe = preset(name)
    return METHODS[recipe.method](student, teachers, **{**recipe.options_for(), **options})
