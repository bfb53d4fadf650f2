"""PGD adversarial training (Madry et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from fastard import rows
from fastard.methods.base import Logs, accuracy, require_labels
from fastard.methods.label_attack import LabelAttack
from fastard.methods.recipes import Preset


class PGDAT(LabelAttack):
    """Trains on PGD examples of the cross entropy.

    Equivalent to: ``F.cross_entropy(student(fastard.pgd_ce(student, x, y)), y)``, in the loss (not
    in the attack) with `label_smoothing`. The student sees x' alone. With `faithful` it sees x'
    twice, and x in train mode once the optimiser has stepped, as in Rice's code: that pass is made
    at the start of the next call, so that the order of all passes is the published one and only the
    one of the last step before an evaluation is not yet in the statistics that are evaluated.

    Source: Madry et al. 2018 (arXiv 1706.06083), github.com/MadryLab/cifar10_challenge.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(LabelAttack.Options):
        label_smoothing: float = 0.0
        faithful: bool = False
        """Makes the two passes a step of Rice's code that score restarts and log the accuracy: loss
        and gradient are the same, the BatchNorm statistics are updated twice more."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("label_smoothing", low=0, high=1)
            self._flag("faithful")

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
            source="github.com/locuslab/robust_overfitting, train_cifar.py; it normalises inputs: "
            "give mean and std",
            options={"attack_mode": "train", "faithful": True},
            student="preactresnet18",
            epochs=200,
            milestones=(100, 150),
            weight_decay=5e-4,
            selection="test-selected",
            val_alpha=2 / 255,
            official=True,
        ),
    )

    _previous: torch.Tensor = torch.empty(0)

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        previous, self._previous = self._previous, torch.empty(0)
        if len(previous):
            self._update_statistics(rows.mine(previous).to(x))
        return super().attack(x, y)

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        if self.options.faithful:
            self._update_statistics(x_adv)
            # Whole, so that any number of processes can go on from it.
            self._previous = rows.gathered(x).clone()
        logits = self.student(x_adv)
        require_labels(y, logits)
        loss = F.cross_entropy(logits, y, label_smoothing=self.options.label_smoothing)
        return loss, {"loss": loss.detach(), "robust_accuracy": accuracy(logits, y)}

    # Not a buffer: its size is that of batches, which are not known when a state is loaded.
    def get_extra_state(self) -> torch.Tensor:
        return self._previous

    def set_extra_state(self, state: torch.Tensor) -> None:
        self._previous = state.clone()
