"""DGAD, dynamic guidance adversarial distillation (Park and Min 2024)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fastard import losses, rows
from fastard.methods.base import Logs, accuracy, require_labels
from fastard.methods.options import AttackOptions
from fastard.methods.pair_attack import PairAttack
from fastard.methods.recipes import Preset

RECIPE = Preset(
    name="dgad",
    method="dgad",
    source="github.com/kunsaram01/DGAD, main.py",
    epochs=200,
    milestones=(100, 150),
    weight_decay=5e-4,
)


class DGAD(PairAttack):
    """AdaAD that distils clean images where the teacher errs on them, and corrects its errors.

    Equivalent to::

        x_adv = fastard.pgd_kl_pair(student, teacher, x)  # max KL(T(x') || S(x')), through both
        losses.dgad(student(x_adv), student(x), teacher(x_adv), teacher(x), y)

    The teacher sees x and x', in the attack with gradient. The student sees x first and x' second.
    Passes of a step with k attack steps, student / teacher: k + 2 / k + 2, as published.

    Source: Park and Min 2024 (ECCV), github.com/kunsaram01/DGAD.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(AttackOptions):
        beta: float = 1.0
        """Weight of the consistency between the outputs for x and x'."""
        nominal_batch: int | None = None
        """The batch size by which the published code divides, also for a smaller last batch; None:
        each batch's own. The trainer puts its own batch size in the place of a preset's."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("beta", low=0)
            if self.nominal_batch is not None:
                self._count("nominal_batch")

    options: Options
    name = "dgad"
    presets: ClassVar[tuple[Preset, ...]] = (
        RECIPE,
        replace(
            RECIPE,
            name="dgad-official",
            options={"nominal_batch": 128, "noise_device": "cpu"},
            selection="test-selected",
            official=True,
        ),
    )

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        nominal = self.options.nominal_batch
        count = rows.parts() * len(x)
        if nominal is not None and nominal < count:
            raise ValueError(
                f"option nominal_batch must be at least the {count} images of a batch, but is "
                f"{nominal}."
            )
        clean_logits = self.student(x)
        adv_logits = self.student(x_adv)
        require_labels(y, clean_logits)
        (clean_teacher_logits,) = self._ask_teachers(x)
        (adv_teacher_logits,) = self._ask_teachers(x_adv, remember=True)
        loss = losses.dgad(
            adv_logits,
            clean_logits,
            adv_teacher_logits,
            clean_teacher_logits,
            y,
            self.options.beta,
            nominal,
        )
        return loss, {
            "loss": loss.detach(),
            "clean_accuracy": accuracy(clean_logits, y),
            "robust_accuracy": accuracy(adv_logits, y),
        }
