"""PGD adversarial training (Madry et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from fastard.api import pgd_ce
from fastard.methods.base import Logs, Method, accuracy, require_labels
from fastard.methods.options import AttackOptions
from fastard.methods.recipes import Preset


class PGDAT(Method):
    """Trains on PGD examples of the cross entropy.

    Equivalent to: ``F.cross_entropy(student(fastard.pgd_ce(student, x, y)), y)``.
    Source: Madry et al. 2018 (arXiv 1706.06083), github.com/MadryLab/cifar10_challenge.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(AttackOptions):
        attack_mode: str = "eval"
        """The student's mode inside the attack; the published code attacks in "train" mode."""
        bn_stats: str = "update"
        """Whether a train-mode attack updates BatchNorm statistics ("update") or not ("frozen")."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._one_of("attack_mode", ("eval", "train"))
            self._one_of("bn_stats", ("update", "frozen"))

    options: Options
    name = "pgd-at"
    presets: ClassVar[tuple[Preset, ...]] = (
        Preset(
            name="pgd-at",
            method="pgd-at",
            source="hyper-parameters of github.com/locuslab/robust_overfitting, train_cifar.py",
            epochs=200,
            milestones=(100, 150),
            weight_decay=5e-4,
        ),
        Preset(
            name="madry",
            method="pgd-at",
            source="github.com/MadryLab/cifar10_challenge, config.json: 80,000 steps, drops at "
            "40,000 and 60,000, here in epochs of 391 steps; it keeps the last step",
            options={"attack_mode": "train"},
            student="wrn-34-10",
            epochs=205,
            milestones=(102, 153),
            selection="last",
            official=True,
        ),
    )

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        options = self.options
        return pgd_ce(
            self.student,
            x,
            y,
            mode=options.attack_mode,
            bn_stats=options.bn_stats,
            **self._attack_arguments(),
        )

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        logits = self.student(x_adv)
        require_labels(y, logits)
        loss = F.cross_entropy(logits, y)
        return loss, {"loss": loss.detach(), "robust_accuracy": accuracy(logits, y)}
