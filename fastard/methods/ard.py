"""ARD, adversarially robust distillation (Goldblum et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fastard import losses
from fastard.methods.base import Logs, accuracy
from fastard.methods.label_attack import LabelAttack
from fastard.methods.recipes import Preset, as_in_iad

_RECIPE = Preset(
    name="ard",
    method="ard",
    source="github.com/goldblum/AdversariallyRobustDistillation, main.py, with the second drop of "
    "its schedule, whose code sets 0.01 again",
    student="mobilenetv2",
    epochs=200,
    milestones=(100, 150),
)


class ARD(LabelAttack):
    """Distils a robust teacher: its clean output is the target of the adversarial one.

    Equivalent to::

        x_adv = fastard.pgd_ce(student, x, y, clip_start=False)
        losses.ard(student(x_adv), teacher(x), alpha=1, temperature=30)

    The teacher sees x. The student sees x' first and x second; the pass of x is made where the
    labels have a weight, or with `faithful`. The published code makes it always, and attacks in
    train mode, so that each of its ten steps updates BatchNorm statistics.

    Source: Goldblum et al. 2020 (arXiv 1905.09747),
        github.com/goldblum/AdversariallyRobustDistillation.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(LabelAttack.Options):
        clip_start: bool | None = False
        teacher_weight: float = 1.0
        """alpha of the paper; the labels of the clean images have the rest."""
        temperature: float = 30.0
        reduction: str = "mean"
        faithful: bool = False
        """Passes x through the student also where the labels have no weight, as the published code
        does: loss and gradient are the same, the BatchNorm statistics are updated once more."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("teacher_weight", low=0, high=1)
            self._positive("temperature")
            self._one_of("reduction", losses.REDUCTIONS)
            self._flag("faithful")

    options: Options
    name = "ard"
    presets: ClassVar[tuple[Preset, ...]] = (
        _RECIPE,
        replace(
            _RECIPE,
            name="ard-official",
            source="github.com/goldblum/AdversariallyRobustDistillation, main.py, which keeps the "
            "last epoch and has batches of 256 on CIFAR-100",
            options={"attack_mode": "train", "faithful": True},
            recipe_by_data={"cifar100": {"batch_size": 256}},
            milestones=(100,),
            selection="last",
            official=True,
        ),
        as_in_iad(
            _RECIPE,
            "ard-iad",
            "github.com/ZFancy/IAD, ARD.py: temperature 1 and the mean over the batch",
            faithful=True,
            temperature=1.0,
            reduction="batchmean",
        ),
    )
    least_teachers = most_teachers = 1
    teacher_sees_clean = True

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        options = self.options
        (teacher_logits,) = self._ask_teachers(x)
        adv_logits = self.student(x_adv)
        clean_logits = None
        if options.teacher_weight < 1:
            clean_logits = self.student(x)
        elif options.faithful:
            self._update_statistics(x)
        loss = losses.ard(
            adv_logits,
            teacher_logits,
            clean_logits,
            y,
            options.teacher_weight,
            options.temperature,
            options.reduction,
        )
        logs = {"loss": loss.detach(), "robust_accuracy": accuracy(adv_logits, y)}
        if clean_logits is not None:
            logs["clean_accuracy"] = accuracy(clean_logits, y)
        return loss, logs
