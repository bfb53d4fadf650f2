"""IAD-II, introspective adversarial distillation with two teachers (Zhu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastard import losses
from fastard.methods.base import Logs, accuracy
from fastard.methods.epoch_count import EpochCount
from fastard.methods.recipes import Preset, as_in_iad, from_iad
from fastard.methods.two_teachers import TwoTeachers

_RECIPE = from_iad("iad-2", "IAD-II.py")


class IAD2(EpochCount, TwoTeachers):
    """AKD2 whose robust teacher counts as far as it can be trusted, else the student itself.

    Equivalent to, from epoch `warm_up` + 1 on::

        x_adv = fastard.pgd_ce(student, x, y, clip_start=False)
        robust_logits = robust(x_adv)
        w = losses.teacher_trust(robust_logits, y, beta)
        losses.iad_2(student(x_adv), student(x), robust_logits, standard(x_adv), y, w)

    and before that to AKD2. Both teachers, a robust and a standard one, see x'. The student sees x'
    first and, after the warm-up, x second; the target S(x) is not detached. The published code asks
    the robust teacher twice for the same output, and attacks in train mode.

    Source: Zhu et al. 2022 (arXiv 2106.04928), github.com/ZFancy/IAD.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(TwoTeachers.Options):
        """The labels have the rest of the teachers' weights."""

        beta: float = 0.1
        """Power of the robust teacher's probability in its weight w."""
        warm_up: int = 40
        """Epochs of AKD2 at the start."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("robust_weight", low=0, high=1)
            self._number("standard_weight", low=0, high=1 - self.robust_weight)
            self._number("beta", low=0)
            self._count("warm_up", least=0)

    options: Options
    name = "iad-2"
    presets: ClassVar[tuple[Preset, ...]] = (
        _RECIPE,
        as_in_iad(_RECIPE, "iad-2-official", "github.com/ZFancy/IAD, IAD-II.py"),
    )

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        options = self.options
        robust_logits, standard_logits = self._ask_teachers(x_adv, remember=True)
        adv_logits = self.student(x_adv)
        logs = {"robust_accuracy": accuracy(adv_logits, y)}
        weights = {
            "robust_weight": options.robust_weight,
            "standard_weight": options.standard_weight,
            "temperature": options.temperature,
        }
        if self.epoch > options.warm_up:
            trust = losses.teacher_trust(robust_logits, y, options.beta)
            clean_logits = self.student(x)
            loss = losses.iad_2(
                adv_logits, clean_logits, robust_logits, standard_logits, y, trust, **weights
            )
            logs |= {"clean_accuracy": accuracy(clean_logits, y), "teacher_trust": trust.mean()}
        else:
            rest = 1 - options.robust_weight - options.standard_weight
            loss = losses.akd2(
                adv_logits, robust_logits, standard_logits, y, label_weight=rest, **weights
            )
        return loss, {"loss": loss.detach(), **logs}
