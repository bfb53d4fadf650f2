"""RSLAD, robust soft label adversarial distillation (Zi et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fastard import losses
from fastard.api import pgd_kl
from fastard.methods.base import Logs, Method, accuracy
from fastard.methods.options import AttackOptions
from fastard.methods.recipes import Preset

RECIPE = Preset(
    name="rslad",
    method="rslad",
    source="github.com/zibojia/RSLAD, resnet18_rslad_cifar10.py, resnet18_rslad_cifar100.py",
    options_by_data={"cifar100": {"scale": 10.0}},
    epochs=300,
    milestones=(215, 260, 285),
)


class RSLAD(Method):
    """Distils a robust teacher: its clean output is the target of attack and loss alike.

    Equivalent to::

        teacher_logits = teacher(x)
        x_adv = fastard.pgd_kl(student, x, teacher_logits)
        losses.rslad(student(x_adv), student(x), teacher_logits)

    The student sees x' first and x second, in two passes, as in the published code: BatchNorm
    treats them apart. No label enters the loss; y serves the logged accuracies.

    Source: Zi et al. 2021 (arXiv 2108.07969), github.com/zibojia/RSLAD.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(AttackOptions):
        adv_weight: float = 5 / 6
        """Weight of the adversarial term; the clean term has the rest."""
        scale: float = 1.0
        """Factor on the loss; the published code has 10 on CIFAR-100."""
        reduction: str = "mean"
        log_floor: float = 1e-5

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("adv_weight", low=0, high=1)
            self._number("scale", low=0)
            self._one_of("reduction", losses.REDUCTIONS)
            self._number("log_floor", low=0)

    options: Options
    name = "rslad"
    presets: ClassVar[tuple[Preset, ...]] = (
        RECIPE,
        replace(
            RECIPE,
            name="rslad-official",
            options={"noise_device": "cpu"},
            selection="test-selected",
            val_steps=20,
            val_alpha=0.003,
            eval_every=20,
            eval_from=215,
            official=True,
        ),
    )
    least_teachers = most_teachers = 1
    teacher_sees_clean = True

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        (teacher_logits,) = self._ask_teachers(x, remember=True)
        return pgd_kl(self.student, x, teacher_logits, **self._attack_arguments())

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        (teacher_logits,) = self._teacher_logits(x)
        adv_logits = self.student(x_adv)
        clean_logits = self.student(x)
        options = self.options
        loss = losses.rslad(
            adv_logits,
            clean_logits,
            teacher_logits,
            options.adv_weight,
            options.scale,
            options.reduction,
            options.log_floor,
        )
        return loss, {
            "loss": loss.detach(),
            "clean_accuracy": accuracy(clean_logits, y),
            "robust_accuracy": accuracy(adv_logits, y),
        }
