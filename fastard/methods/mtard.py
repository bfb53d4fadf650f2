"""MTARD: a robust and a natural teacher, their weights balanced as training goes (Zhao 2022)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from fastard import losses, rows
from fastard.methods.answers import answer
from fastard.methods.base import Logs, accuracy, require_labels
from fastard.methods.label_attack import LabelAttack
from fastard.methods.recipes import Preset

RECIPE = Preset(
    name="mtard",
    method="mtard",
    source="github.com/zhaoshiji123/MTARD, mtard_resnet18_cifar10.py, mtard_resnet18_cifar100.py",
    options_by_data={"cifar100": {"scale": 10.0}},
    epochs=300,
    milestones=(215, 260, 285),
)

Pair = tuple[torch.Tensor, torch.Tensor]


class MTARD(LabelAttack):
    """Follows a robust teacher on x' and a natural one on x; the slower term gains weight.

    Equivalent to, with l = k / (k of the very first step) of either term::

        x_adv = fastard.pgd_ce(student, x, y, random_start="gaussian")
        k_adv, k_nat = losses.mtard(student(x_adv), student(x), robust(x_adv), natural(x))
        w_nat -= rate * (w_nat - l_nat / (l_adv + l_nat))
        (1 - w_nat) * k_adv + w_nat * k_nat

    Teachers are given in the order robust, natural; the first sees x', the second x, neither is in
    the attack. The student sees x' first and x second. Passes of a step with k attack steps,
    student / teachers: k + 2 / 1 + 1, as published. No label enters the loss.

    The weights and the first step's terms are buffers, never read by the host. The rate falls
    tenfold where the published learning rate falls, through `on_epoch`.

    Source: Zhao et al. 2022 (ECCV), github.com/zhaoshiji123/MTARD.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(LabelAttack.Options):
        random_start: bool | str = "gaussian"
        scale: float = 1.0
        """Factor on the loss; the published code has 10 on CIFAR-100."""
        reduction: str = "mean"
        log_floor: float = 1e-5
        weight_rate: float = 0.025
        """How fast the weights follow the terms, before the first drop."""
        drops: tuple[float, ...] = (215 / 300, 260 / 300, 285 / 300)
        """After which shares of the epochs the rates fall tenfold: where the learning rate does."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("scale", low=0)
            self._one_of("reduction", losses.REDUCTIONS)
            self._number("log_floor", low=0)
            self._number("weight_rate", low=0, high=1)
            self._numbers("drops", low=0, high=1)

    options: Options
    name = "mtard"
    presets: ClassVar[tuple[Preset, ...]] = (
        RECIPE,
        replace(
            RECIPE,
            name="mtard-official",
            options={"noise_device": "cpu"},
            selection="test-selected",
            val_steps=20,
            val_alpha=0.003,
            eval_every=20,
            eval_from=215,
            official=True,
        ),
    )
    least_teachers = most_teachers = 2
    teacher_roles: ClassVar[tuple[str, ...]] = ("robust", "natural")
    natural_weight: torch.Tensor
    first: torch.Tensor
    rate_factor: torch.Tensor

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        for name, value in (
            ("natural_weight", 0.5),
            ("first", [float("nan")] * 2),
            ("rate_factor", 1.0),
        ):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    def on_epoch(self, epoch: int, epochs: int) -> None:
        # After the same whole epochs as the trainer's milestones.
        passed = sum(epoch > round(share * epochs) for share in self.options.drops)
        self.rate_factor.fill_(0.1**passed)

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        options = self.options
        adv_logits = self.student(x_adv)
        clean_logits = self.student(x)
        require_labels(y, clean_logits)
        robust, natural = self.teachers
        with self.teacher_timer:
            answers = answer(robust, x_adv), answer(natural, x)
        adv_targets, clean_targets = self._targets(*answers)
        terms = losses.mtard(
            adv_logits,
            clean_logits,
            adv_targets,
            clean_targets,
            options.scale,
            options.reduction,
            options.log_floor,
        )
        weight = self._balance(*terms)
        loss = (1 - weight) * terms[0] + weight * terms[1]
        return loss, {
            "loss": loss.detach(),
            "natural_weight": self.natural_weight.clone(),
            "clean_accuracy": accuracy(clean_logits, y),
            "robust_accuracy": accuracy(adv_logits, y),
        }

    def _targets(self, robust: torch.Tensor, natural: torch.Tensor) -> Pair:
        """The teachers' logits as the student shall see them."""
        return robust, natural

    @torch.no_grad()
    def _balance(self, adv: torch.Tensor, natural: torch.Tensor) -> torch.Tensor:
        """Moves the weights by one step and returns that of the natural term."""
        now = rows.mean(torch.stack([adv, natural]).to(self.first.dtype))
        self.first.copy_(torch.where(self.first.isnan(), now, self.first))
        relative = now / self.first
        share = relative[1] / relative.sum()
        rate = self.options.weight_rate * self.rate_factor
        self.natural_weight.sub_(rate * (self.natural_weight - share))
        return self.natural_weight.clone().to(adv.dtype)
