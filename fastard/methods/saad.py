"""SAAD: a linearised teacher in the attack, weights by its entropy (Lee and Chung 2026)."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from fastard import losses
from fastard.api import linearised, pgd_kl_pair
from fastard.methods.answers import answer
from fastard.methods.base import Logs, Method, accuracy
from fastard.methods.options import AttackOptions
from fastard.methods.recipes import Preset

RECIPE = Preset(
    name="saad",
    method="saad",
    source="github.com/HongsinLee/saad, saad.py, args.py, without its weight averaging from epoch "
    "95 on",
    options_by_data={"cifar100": {"igdm_weight": 10.0}, "tiny-imagenet": {"igdm_weight": 10.0}},
    epochs=200,
    milestones=(100, 150),
)


class SAAD(Method):
    """AdaAD's attack at the price of a constant teacher, and a loss weighed by its entropy.

    Equivalent to, with delta = x' - x::

        near_x, teacher_logits = fastard.api.linearised(teacher, x, y, slope)
        x_adv = fastard.pgd_kl_pair(student, near_x, x)
        losses.saad(student(x_adv), student(x - delta), teacher(x_adv), teacher(x - delta),
                    student(x), teacher_logits, gradient_weight=igdm_weight * epoch / epochs)

    The teacher sees x, with one backward pass, x' and x - delta. The student sees x', x - delta
    (not clipped) and, where it has weight, x. Passes of a step with k attack steps, student /
    teacher: k + 3 / 4 and one backward as published; k + 2 (k + 3 with the clean term) / 3 and one
    backward here. With `difference` "forward" x takes the place of x - delta.

    Source: Lee and Chung 2026 (TMLR), github.com/HongsinLee/saad.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(AttackOptions):
        slope: float = 1.0
        """Lambda, on the linear part of the teacher in the attack."""
        igdm_weight: float = 1.0
        """Alpha, which the last epoch reaches; the published code's: 1 on CIFAR-10, 10 on CIFAR-100
        and Tiny-ImageNet. The values are not confirmed by the paper's text."""
        difference: str = "central"
        """Logits of x + delta less those of x - delta ("central", the published code) or of x
        ("forward", the paper's equation 11)."""
        clean_weight: float = 0.0
        """The code's beta, of SAAD-C's clean term; the code has no default for it."""
        entropy_scale: float = 5.0
        entropy: str = "shannon"
        renyi_order: float = 2.0
        """Of the entropy "renyi"; the value is not confirmed by the paper's text."""
        faithful: bool = False
        """Shows the student x also where it has no weight, after x' and x - delta, as the published
        code does: the pass updates the BatchNorm statistics."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("slope", "igdm_weight", "clean_weight", "entropy_scale", "renyi_order"):
                self._number(name, low=0)
            self._one_of("difference", ("central", "forward"))
            self._one_of("entropy", losses.ENTROPIES)
            if self.renyi_order == 1:
                raise ValueError("option renyi_order must not be 1, which entropy 'shannon' is.")
            self._flag("faithful")

    options: Options
    name = "saad"
    presets: ClassVar[tuple[Preset, ...]] = (
        RECIPE,
        replace(
            RECIPE,
            name="saad-paper",
            source=f"{RECIPE.source}, with the difference of the paper's equation 11; alpha is the "
            "code's, not confirmed by the paper's text",
            options={"difference": "forward"},
        ),
        replace(
            RECIPE,
            name="saad-official",
            source="github.com/HongsinLee/saad, saad.py, args.py, which keeps the average of the "
            "weights after the last epoch",
            options={"faithful": True},
            average="swa",
            average_start=95,
            selection="last",
            official=True,
        ),
    )
    least_teachers = most_teachers = 1
    ramp: torch.Tensor

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.register_buffer("ramp", torch.tensor(1.0, dtype=torch.float64))

    def on_epoch(self, epoch: int, epochs: int) -> None:
        self.ramp.fill_(epoch / epochs)

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        options, teacher = self.options, self.teachers[0].eval()
        with self.teacher_timer:
            near_x, logits = linearised(teacher, x, y, options.slope, options.precision)
        self._remembered = (weakref.ref(x), [logits])
        return pgd_kl_pair(self.student, near_x, x, **self._attack_arguments())

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        options, teacher = self.options, self.teachers[0]
        adv_logits = self.student(x_adv)
        with self.teacher_timer:
            adv_teacher_logits = answer(teacher, x_adv)
        clean_logits = clean_teacher_logits = None
        if options.difference == "central":
            below = 2 * x - x_adv
            other_logits = self.student(below)
            with self.teacher_timer:
                other_teacher_logits = answer(teacher, below)
        if options.clean_weight or options.difference == "forward":
            clean_logits = self.student(x)
            (clean_teacher_logits,) = self._teacher_logits(x)
        elif options.faithful:
            with torch.no_grad():
                clean_logits = self.student(x)
        if options.difference == "forward":
            assert clean_logits is not None and clean_teacher_logits is not None
            other_logits, other_teacher_logits = clean_logits, clean_teacher_logits
        loss = losses.saad(
            adv_logits,
            other_logits,
            adv_teacher_logits,
            other_teacher_logits,
            clean_logits,
            clean_teacher_logits,
            gradient_weight=(options.igdm_weight * self.ramp).to(adv_logits.dtype),
            clean_weight=options.clean_weight,
            entropy_scale=options.entropy_scale,
            entropy_kind=options.entropy,
            renyi_order=options.renyi_order,
        )
        logs = {"loss": loss.detach(), "robust_accuracy": accuracy(adv_logits, y)}
        if clean_logits is not None:
            logs["clean_accuracy"] = accuracy(clean_logits, y)
        return loss, logs
