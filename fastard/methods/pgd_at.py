"""PGD adversarial training (Madry et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from fastard.methods.base import Logs, accuracy, require_labels
from fastard.methods.label_attack import LabelAttack
from fastard.methods.recipes import Preset


class PGDAT(LabelAttack):
    """Trains on PGD examples of the cross entropy.

    Equivalent to: ``F.cross_entropy(student(fastard.pgd_ce(student, x, y)), y)``, in the loss (not
    in the attack) with `label_smoothing`.
    Source: Madry et al. 2018 (arXiv 1706.06083), github.com/MadryLab/cifar10_challenge.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(LabelAttack.Options):
        label_smoothing: float = 0.0

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("label_smoothing", low=0, high=1)

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
        Preset(
            name="rice",
            method="pgd-at",
            source="github.com/locuslab/robust_overfitting, train_cifar.py, without its train-mode "
            "passes for scoring restarts and for logging; it normalises inputs: give mean and std",
            options={"attack_mode": "train"},
            student="preactresnet18",
            epochs=200,
            milestones=(100, 150),
            weight_decay=5e-4,
            selection="test-selected",
            val_alpha=2 / 255,
            official=True,
        ),
    )

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        logits = self.student(x_adv)
        require_labels(y, logits)
        loss = F.cross_entropy(logits, y, label_smoothing=self.options.label_smoothing)
        return loss, {"loss": loss.detach(), "robust_accuracy": accuracy(logits, y)}
