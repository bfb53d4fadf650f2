"""KD, knowledge distillation on clean images (Hinton et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastard import losses
from fastard.methods.base import Logs, Method, accuracy, require_labels
from fastard.methods.options import MethodOptions
from fastard.methods.recipes import Preset, customary


class KD(Method):
    """Distils a teacher on clean images, beside the labels; no attack.

    Equivalent to: ``losses.kd(student(x), teacher(x), y, teacher_weight, temperature)``.

    Teacher and student see x. From a robust teacher too, little robustness is distilled this way:
    it is a baseline.

    Source: Hinton et al. 2015 (arXiv 1503.02531).
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(MethodOptions):
        teacher_weight: float = 0.9
        """Not confirmed by the paper's text, which gives the labels a considerably lower weight."""
        temperature: float = 4.0
        """Of both networks; a customary value, the paper's text confirms none."""

        def __post_init__(self) -> None:
            self._number("teacher_weight", low=0, high=1)
            self._positive("temperature")

    options: Options
    name = "kd"
    presets: ClassVar[tuple[Preset, ...]] = (customary("kd"),)
    least_teachers = most_teachers = 1
    teacher_sees_clean = True
    selects_on = "clean"

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.detach()

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        (teacher_logits,) = self._ask_teachers(x)
        require_labels(y, teacher_logits)
        logits = self.student(x)
        options = self.options
        loss = losses.kd(logits, teacher_logits, y, options.teacher_weight, options.temperature)
        return loss, {"loss": loss.detach(), "clean_accuracy": accuracy(logits, y)}
