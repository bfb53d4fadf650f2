"""AdaIAD, AdaAD's attack with introspective distillation (Huang et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fastard import losses
from fastard.methods.adaad import RECIPE as ADAAD
from fastard.methods.base import Logs, accuracy, require_labels
from fastard.methods.epoch_count import EpochCount
from fastard.methods.options import AttackOptions
from fastard.methods.pair_attack import PairAttack
from fastard.methods.recipes import Preset

RECIPE = replace(
    ADAAD,
    name="adaiad",
    method="adaiad",
    source="github.com/boyellow/AdaAD, main.py (AdaAD_with_IAD1) and README",
    options_by_data={},
)


class AdaIAD(EpochCount, PairAttack):
    """AdaAD whose student, after a warm-up, follows itself where the teacher is unsure.

    Equivalent to::

        x_adv = fastard.pgd_kl_pair(student, teacher, x)  # max KL(T(x') || S(x')), through both
        losses.adaiad(student(x_adv), teacher(x_adv), y, student(x) if warm else None)

    The teacher sees x' only, in the attack with gradient. The student sees x' in the warm-up, then
    x and x'. Passes of a step with k attack steps, student / teacher: k + 3, then k + 4 / k + 2 as
    published; k + 1, then k + 2 / k + 1 here.

    Source: Huang et al. 2023 (CVPR), github.com/boyellow/AdaAD.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(AttackOptions):
        temperature: float = 30.0
        """t, of the teacher's term, which has the factor t**2."""
        beta: float = 0.1
        """Exponent of the teacher's confidence."""
        warmup: int = 60
        """Finished epochs before the student's own clean output becomes a target."""
        faithful: bool = False
        """Runs the clean images as often as the published code: x, x', x, and x once more after
        the warm-up. Loss and gradient stay; the BatchNorm statistics are updated as often."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._positive("temperature")
            self._number("beta", low=0)
            self._count("warmup", least=0)
            self._flag("faithful")

    options: Options
    name = "adaiad"
    presets: ClassVar[tuple[Preset, ...]] = (
        RECIPE,
        replace(
            RECIPE,
            name="adaiad-official",
            options={"faithful": True, "noise_device": "cpu"},
            selection="test-selected",
            official=True,
        ),
    )

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        options = self.options
        warm = self.epoch > options.warmup
        clean_logits = None
        if options.faithful:
            self._update_statistics(x)
        elif warm:
            clean_logits = self.student(x)
        adv_logits = self.student(x_adv)
        if options.faithful:
            if warm:
                clean_logits = self.student(x)
            # The published code asks for a cross entropy whose weight is zero.
            self._update_statistics(x)
        require_labels(y, adv_logits)
        (adv_teacher_logits,) = self._ask_teachers(x_adv, remember=True)
        loss = losses.adaiad(
            adv_logits, adv_teacher_logits, y, clean_logits, options.beta, options.temperature
        )
        logs = {"loss": loss.detach(), "robust_accuracy": accuracy(adv_logits, y)}
        if clean_logits is not None:
            logs["clean_accuracy"] = accuracy(clean_logits, y)
        return loss, logs
