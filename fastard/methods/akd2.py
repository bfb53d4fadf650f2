"""AKD2, or KD with SWA (Chen et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fastard import losses
from fastard.methods.base import Logs, accuracy
from fastard.methods.recipes import Preset, as_in_iad, from_iad
from fastard.methods.two_teachers import TwoTeachers

_RECIPE = from_iad("akd2", "AKD2.py")


class AKD2(TwoTeachers):
    """Distils a robust and a standard teacher on adversarial images, beside the labels.

    Equivalent to::

        x_adv = fastard.pgd_ce(student, x, y, clip_start=False)
        losses.akd2(student(x_adv), robust(x_adv), standard(x_adv), y)

    Both teachers, a robust and a standard one, see x'; the student sees x' alone. The name is that
    of the IAD code and of papers that followed it. It is not the AKD of Maroto et al. (`akd`).

    Source: Chen et al. 2021 (ICLR, "Robust overfitting may be mitigated by properly learned
        smoothening"), github.com/VITA-Group/Alleviate-Robust-Overfitting; github.com/ZFancy/IAD.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(TwoTeachers.Options):
        label_weight: float = 0.25

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("label_weight", low=0)

    options: Options
    name = "akd2"
    presets: ClassVar[tuple[Preset, ...]] = (
        _RECIPE,
        as_in_iad(_RECIPE, "akd2-iad", "github.com/ZFancy/IAD, AKD2.py"),
        replace(
            _RECIPE,
            name="akd2-kdswa",
            source="github.com/VITA-Group/Alleviate-Robust-Overfitting, main_adv.py, with --lwf "
            "and --swa (epoch 55 of those counted from 0); it normalises inputs: give mean and std",
            options={
                "attack_mode": "train",
                "clip_start": True,
                "label_weight": 0.3,
                "robust_weight": 0.6,
                "standard_weight": 0.1,
                "temperature": 2.0,
            },
            student="preactresnet18",
            milestones=(50, 150),
            weight_decay=5e-4,
            average="swa",
            average_start=56,
            val_steps=20,
            val_alpha=2 / 255,
            official=True,
        ),
    )

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        options = self.options
        robust_logits, standard_logits = self._ask_teachers(x_adv, remember=True)
        adv_logits = self.student(x_adv)
        loss = losses.akd2(
            adv_logits,
            robust_logits,
            standard_logits,
            y,
            options.label_weight,
            options.robust_weight,
            options.standard_weight,
            options.temperature,
        )
        return loss, {"loss": loss.detach(), "robust_accuracy": accuracy(adv_logits, y)}
