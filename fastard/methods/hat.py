"""HAT, helper-based adversarial training (Rade & Moosavi-Dezfooli 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastard import losses
from fastard.methods.base import Logs, accuracy
from fastard.methods.options import AttackOptions
from fastard.methods.recipes import Preset
from fastard.methods.self_attack import SelfAttack


class HAT(SelfAttack):
    """TRADES, and images moved further than x' that keep a standard network's label.

    Equivalent to::

        x_adv = fastard.pgd_kl(student, x, student_in_eval_mode(x))
        x_far = x + h * (x_adv - x)
        losses.hat(student(x), student(x_adv), student(x_far), y, helper(x_adv).argmax(1))

    The one teacher is the helper, a network of standard training; it sees x' in eval mode. The
    student sees x, x' and x_far, in this order; x_far is not clipped to the box.

    Source: Rade & Moosavi-Dezfooli 2022 (ICLR), github.com/imrahulr/hat.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(AttackOptions):
        h: float = 2.0
        """How far the helper's images go, in units of the perturbation."""
        beta: float = 2.5
        gamma: float = 0.5

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("h", low=0)
            self._number("beta", low=0)
            self._number("gamma", low=0)

    options: Options
    name = "hat"
    presets: ClassVar[tuple[Preset, ...]] = (
        Preset(
            name="hat",
            method="hat",
            source="github.com/imrahulr/hat, README and core/utils/parser.py; its one-cycle "
            "schedule moves the momentum too, which is constant here",
            epochs=50,
            schedule="onecycle",
            peak=0.25,
            lr=0.21,
            weight_decay=5e-4,
            nesterov=True,
        ),
    )
    least_teachers = most_teachers = 1
    teacher_roles = ("standard",)

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        options = self.options
        (helper_logits,) = self._ask_teachers(x_adv)
        x_far = x + options.h * (x_adv - x)
        clean_logits = self.student(x)
        adv_logits = self.student(x_adv)
        far_logits = self.student(x_far)
        loss = losses.hat(
            clean_logits,
            adv_logits,
            far_logits,
            y,
            helper_logits.argmax(1),
            options.beta,
            options.gamma,
        )
        return loss, {
            "loss": loss.detach(),
            "clean_accuracy": accuracy(clean_logits, y),
            "robust_accuracy": accuracy(adv_logits, y),
        }
