"""RSLAD at the scale of later papers: the exact divergence, averaged over the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fastard.methods.recipes import Preset
from fastard.methods.rslad import RECIPE, RSLAD


class RSLADBatchmean(RSLAD):
    """RSLAD whose loss divides by B instead of B * C and has no floor in the logarithm.

    With ten classes its gradient is ten times the published code's, which matters next to weight
    decay.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(RSLAD.Options):
        reduction: str = "batchmean"
        log_floor: float = 0.0

    name = "rslad-batchmean"
    presets: ClassVar[tuple[Preset, ...]] = (
        replace(
            RECIPE,
            name="rslad-batchmean",
            method="rslad-batchmean",
            source=f"{RECIPE.source}; the loss as later papers scale it",
            options_by_data={},
        ),
    )
