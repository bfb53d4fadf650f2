"""LBGAT, learnable boundary guided adversarial training (Cui et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from fastard import losses
from fastard.methods.base import Logs, accuracy
from fastard.methods.options import AttackOptions
from fastard.methods.recipes import Preset
from fastard.methods.self_attack import SelfAttack

_RECIPE = Preset(
    name="lbgat",
    method="lbgat",
    source="github.com/dvlab-research/LBGAT, train_lbgat_cifar100.py, which has 0.02 as learning "
    "rate of the first epoch",
    student="wrn-34-10",
    epochs=100,
    milestones=(75, 90),
)


class LBGAT(SelfAttack):
    """Trains a helper on clean images along with the student, whose x' has the helper's logits.

    Equivalent to::

        x_adv = fastard.pgd_kl(student, x, student_in_eval_mode(x))
        losses.lbgat(student(x_adv), helper(x), y, student(x), beta)

    The one teacher is the helper. It is trained here, in train mode and with both of its terms'
    gradients, so it is a submodule of the method: `trainable_parameters()`, `state_dict()` and
    `to()` hold it. It sees x. The student sees x' first and x second; the pass of x is made where
    beta is above 0, or with `faithful`.

    Source: Cui et al. 2021 (arXiv 2011.11164), github.com/dvlab-research/LBGAT.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(AttackOptions):
        beta: float = 6.0
        """Weight of the divergence from the student's clean output; Cui et al. have 0 and 6."""
        faithful: bool = False
        """Passes x through the student also where beta is 0, as the published code does: loss and
        gradient are the same, the BatchNorm statistics are updated once more."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("beta", low=0)
            self._flag("faithful")

    options: Options
    name = "lbgat"
    presets: ClassVar[tuple[Preset, ...]] = (
        _RECIPE,
        replace(
            _RECIPE,
            name="lbgat-official",
            source=f"{_RECIPE.source} and keeps every epoch",
            options={"eps": 0.031, "alpha": 0.007, "faithful": True, "noise_device": "cpu"},
            selection="last",
            official=True,
        ),
    )
    least_teachers = most_teachers = 1
    teacher_roles = ("helper",)
    trains_teachers = True
    helper: nn.Module

    def __init__(
        self, student: nn.Module, teachers: nn.Module | Sequence[nn.Module] = (), **options: Any
    ):
        super().__init__(student, teachers, **options)
        (self.helper,) = self.teachers
        self.teachers = ()
        self.helper.train().requires_grad_(True)

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        options = self.options
        adv_logits = self.student(x_adv)
        clean_logits = None
        if options.beta > 0:
            clean_logits = self.student(x)
        elif options.faithful:
            self._update_statistics(x)
        helper_logits = self.helper(x)
        loss = losses.lbgat(adv_logits, helper_logits, y, clean_logits, options.beta)
        logs = {
            "loss": loss.detach(),
            "robust_accuracy": accuracy(adv_logits, y),
            "helper_accuracy": accuracy(helper_logits, y),
        }
        if clean_logits is not None:
            logs["clean_accuracy"] = accuracy(clean_logits, y)
        return loss, logs
