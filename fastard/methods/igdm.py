"""IGDM, indirect gradient distillation on top of any distilling method (Lee et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from fastard import losses
from fastard.methods.answers import answer, heard
from fastard.methods.base import Logs
from fastard.methods.over_base import OverBase
from fastard.methods.recipes import Preset

DEFAULT_BASE = "adaad-batchmean"
RECIPE = Preset(
    name="igdm",
    method="igdm",
    source="Lee et al. 2025, ICLR; alpha is that of the LTD teachers",
    options={"base": DEFAULT_BASE, "igdm_weight": 5.0},
    options_by_data={"cifar100": {"igdm_weight": 15.0}},
    epochs=200,
    milestones=(100, 150),
    weight_decay=5e-4,
)


class IGDM(OverBase):
    """Adds to a base method that the student's gradient be the teacher's, without computing either.

    Equivalent to, with delta = x' - x of the base's attack::

        loss, logs = base.outer(x, x_adv, y)
        loss + igdm_weight * epoch / epochs * losses.igdm(
            student(x + delta), student(x - delta), teacher(x + delta), teacher(x - delta))

    x - delta is not clipped to [0, 1], as published. The teacher sees what the base shows it, and
    x + delta and x - delta; with several teachers the first one, and on a base that takes none
    (PGD-AT, TRADES, MART) the one given. The student makes the base's passes, then x - delta.
    Passes of a step on AdaAD with k attack steps, student / teacher: k + 4 / k + 4 as published;
    k + 2 / k + 2 here: x + delta is x', whose logits the base has at hand.

    Options that are not its own are those of the base, `base` any method or preset with a PGD
    attack whose teachers stay fixed. On PGD-AT and CIFAR-100 the paper's alpha is 100 or 220.
    Without calls of `on_epoch` the weight is the whole of igdm_weight.

    Source: Lee et al. 2025 (ICLR).
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(OverBase.Options):
        base: str = DEFAULT_BASE
        igdm_weight: float = 5.0
        """The paper's alpha, which the last epoch reaches; `alpha` is the attack's step size."""
        distance: str = "kl"
        ramp: bool = True
        """Whether the weight grows with the epochs."""
        faithful: bool = False
        """Shows the student x + delta, x and x - delta ahead of the base's passes: with AdaAD as
        base the BatchNorm statistics of the authors' code."""

        def __post_init__(self) -> None:
            self._number("igdm_weight", low=0)
            self._one_of("distance", losses.IGDM_DISTANCES)
            self._flag("ramp")
            self._flag("faithful")

    options: Options
    name = "igdm"
    default_base = DEFAULT_BASE
    presets: ClassVar[tuple[Preset, ...]] = (
        RECIPE,
        replace(
            RECIPE,
            name="igdm-official",
            source="the authors' code of Lee et al. 2025, on AdaAD, as it is found in a copy with "
            "small edits: weight decay 2e-4 where the paper has 5e-4; it keeps the last epoch",
            options={**RECIPE.options, "faithful": True, "noise_device": "cpu"},
            weight_decay=2e-4,
            selection="last",
            official=True,
        ),
        replace(
            RECIPE,
            name="igdm-rslad",
            options={"base": "rslad-batchmean", "igdm_weight": 0.9},
            source=f"{RECIPE.source}; on CIFAR-100 the loss of the base is RSLAD's own, as in the "
            "authors' code",
            options_by_data={
                "cifar100": {
                    "igdm_weight": 3.0,
                    "reduction": "mean",
                    "scale": 10.0,
                    "log_floor": 1e-5,
                }
            },
            epochs=300,
            milestones=(215, 260, 285),
        ),
        replace(
            RECIPE,
            name="igdm-ard",
            options={
                "base": "ard",
                "igdm_weight": 5.0,
                "temperature": 1.0,
                "reduction": "batchmean",
                "clip_start": True,
            },
            options_by_data={"cifar100": {"igdm_weight": 50.0}},
        ),
        replace(
            RECIPE,
            name="igdm-iad",
            options={"base": "iad-1", "igdm_weight": 50.0, "clip_start": True},
            options_by_data={"cifar100": {"igdm_weight": 20.0}},
        ),
        replace(
            RECIPE,
            name="igdm-akd",
            options={"base": "akd", "igdm_weight": 7.0},
            options_by_data={"cifar100": {"igdm_weight": 50.0}},
        ),
    )
    ramp: torch.Tensor

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.register_buffer("ramp", torch.tensor(1.0, dtype=torch.float64))

    def on_epoch(self, epoch: int, epochs: int) -> None:
        super().on_epoch(epoch, epochs)
        self.ramp.fill_(epoch / epochs if self.options.ramp else 1.0)

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        below = 2 * x - x_adv
        teacher = self.teachers[0]
        if self.options.faithful:
            plus = self.student(x_adv)
            with torch.no_grad():
                self.student(x)
            minus = self.student(below)
            loss, logs = self.base.outer(x, x_adv, y)
        else:
            with heard(self.student, x_adv) as logits:
                loss, logs = self.base.outer(x, x_adv, y)
            plus = logits[0] if logits else self.student(x_adv)
            minus = self.student(below)
        asks = self.base._teacher_logits if self.base.teachers else self._ask_teachers
        teacher_plus = asks(x_adv)[0]
        with self.teacher_timer:
            teacher_minus = answer(teacher, below)
        term = losses.igdm(plus, minus, teacher_plus, teacher_minus, self.options.distance)
        loss = loss + (self.options.igdm_weight * self.ramp).to(loss.dtype) * term
        return loss, {**logs, "loss": loss.detach(), "igdm": term.detach()}
