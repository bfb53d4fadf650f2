"""MART, misclassification-aware adversarial training (Wang et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fastard import losses
from fastard.methods.base import Logs, accuracy
from fastard.methods.label_attack import LabelAttack
from fastard.methods.recipes import Preset

_RECIPE = Preset(
    name="mart",
    method="mart",
    source="github.com/YisenWang/MART, train_resnet.py",
    epochs=120,
    milestones=(74, 89, 99),
    lr=0.01,
    weight_decay=3.5e-3,
)


class MART(LabelAttack):
    """Trains on adversarial images, and holds misclassified ones nearer to the clean output.

    Equivalent to::

        x_adv = fastard.pgd_ce(student, x, y, random_start="gaussian")
        losses.mart(student(x), student(x_adv), y, beta)

    No teacher. The student sees x first and x' second, as in the published code, whose two passes
    are those made here; nothing is detached.

    Source: Wang et al. 2020 (ICLR), github.com/YisenWang/MART.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(LabelAttack.Options):
        random_start: bool | str = "gaussian"
        beta: float = 5.0
        """Weight of the divergence; the published code has 6 for WRN-34-10."""
        log_floor: float = 0.0
        """Added to probabilities inside logarithms; the published code's 1e-12 stops the gradient
        of classes less likely than that, 0 is the exact divergence in one kernel."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("beta", low=0)
            self._number("log_floor", low=0)

    options: Options
    name = "mart"
    presets: ClassVar[tuple[Preset, ...]] = (
        _RECIPE,
        replace(
            _RECIPE,
            name="mart-official",
            source=f"{_RECIPE.source}, which keeps every epoch",
            options={"eps": 0.031, "alpha": 0.007, "log_floor": 1e-12, "noise_device": "cpu"},
            selection="last",
            val_steps=20,
            val_alpha=0.003,
            official=True,
        ),
    )

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        clean_logits = self.student(x)
        adv_logits = self.student(x_adv)
        options = self.options
        loss = losses.mart(clean_logits, adv_logits, y, options.beta, options.log_floor)
        return loss, {
            "loss": loss.detach(),
            "clean_accuracy": accuracy(clean_logits, y),
            "robust_accuracy": accuracy(adv_logits, y),
        }
