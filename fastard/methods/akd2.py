"""AKD2, or KD with SWA (Chen et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fastard import losses
from fastard.methods.base import Logs, accuracy
from fastard.methods.label_attack import LabelAttack
from fastard.methods.recipes import Preset

_RECIPE = Preset(
    name="akd2",
    method="akd2",
    source="github.com/ZFancy/IAD, AKD2.py, with the second drop of its schedule, whose code sets "
    "0.01 again",
    epochs=200,
    milestones=(100, 150),
)


class AKD2(LabelAttack):
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
    class Options(LabelAttack.Options):
        clip_start: bool | None = False
        label_weight: float = 0.25
        robust_weight: float = 0.5
        standard_weight: float = 0.25
        temperature: float = 1.0

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("label_weight", low=0)
            self._number("robust_weight", low=0)
            self._number("standard_weight", low=0)
            self._positive("temperature")

    options: Options
    name = "akd2"
    presets: ClassVar[tuple[Preset, ...]] = (
        _RECIPE,
        replace(
            _RECIPE,
            name="akd2-iad",
            source="github.com/ZFancy/IAD, AKD2.py",
            options={"attack_mode": "train"},
            milestones=(100,),
            selection="test-selected",
            val_alpha=2 / 255,
            official=True,
        ),
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
    least_teachers = most_teachers = 2
    teacher_roles = ("robust", "standard")

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
