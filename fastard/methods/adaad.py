"""AdaAD, adaptive adversarial distillation (Huang et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fastard import losses
from fastard.methods.base import Logs, accuracy
from fastard.methods.options import AttackOptions
from fastard.methods.pair_attack import PairAttack
from fastard.methods.recipes import Preset

RECIPE = Preset(
    name="adaad",
    method="adaad",
    source="github.com/boyellow/AdaAD, main.py and README (eps 8/255; the scripts' own default is "
    "16/255)",
    options_by_data={"cifar100": {"reduction": "batchmean"}},
    epochs=200,
    milestones=(100, 150),
    weight_decay=5e-4,
)


class AdaAD(PairAttack):
    """Searches where student and teacher differ most, and makes them agree there.

    Equivalent to::

        x_adv = fastard.pgd_kl_pair(student, teacher, x)  # max KL(T(x') || S(x')), through both
        losses.adaad(student(x_adv), teacher(x_adv), student(x), teacher(x), adv_weight)

    The teacher sees x', in the attack with gradient; and x where adv_weight is below 1. The student
    sees x first and x' second. Passes of a step with k attack steps, student / teacher: k + 2 /
    k + 2 as published; k + 1 / k + 1 here at adv_weight 1, where the clean term has no weight.

    Source: Huang et al. 2023 (CVPR), github.com/boyellow/AdaAD.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(AttackOptions):
        adv_weight: float = 1.0
        """Lambda, the weight of the adversarial term; the clean term has the rest."""
        reduction: str = "mean"
        """The published code has "mean" on CIFAR-10 and "batchmean" on CIFAR-100."""
        faithful: bool = False
        """Shows the student the clean images also where they have no weight, as the published code
        does: their pass updates the BatchNorm statistics."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("adv_weight", low=0, high=1)
            self._one_of("reduction", losses.REDUCTIONS)
            self._flag("faithful")

    options: Options
    name = "adaad"
    presets: ClassVar[tuple[Preset, ...]] = (
        RECIPE,
        replace(
            RECIPE,
            name="adaad-batchmean",
            source=f"{RECIPE.source}; the loss as later papers scale it",
            options={"reduction": "batchmean"},
            options_by_data={},
        ),
        replace(
            RECIPE,
            name="adaad-official",
            options={"faithful": True, "noise_device": "cpu"},
            selection="test-selected",
            official=True,
        ),
    )

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        options = self.options
        logs: Logs = {}
        clean_logits = clean_teacher_logits = None
        if options.adv_weight < 1:
            (clean_teacher_logits,) = self._ask_teachers(x)
            clean_logits = self.student(x)
        elif options.faithful:
            # Its weight is zero; without a graph its statistics are the same.
            with torch.no_grad():
                clean_logits = self.student(x)
        if clean_logits is not None:
            logs["clean_accuracy"] = accuracy(clean_logits, y)
        (adv_teacher_logits,) = self._ask_teachers(x_adv, remember=True)
        adv_logits = self.student(x_adv)
        loss = losses.adaad(
            adv_logits,
            adv_teacher_logits,
            clean_logits,
            clean_teacher_logits,
            options.adv_weight,
            options.reduction,
        )
        logs["robust_accuracy"] = accuracy(adv_logits, y)
        return loss, {"loss": loss.detach(), **logs}
