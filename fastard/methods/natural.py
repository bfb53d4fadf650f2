"""Natural training: cross entropy on clean images, no attack."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F

from fastard.methods.base import Logs, Method, accuracy, require_labels
from fastard.methods.recipes import Preset


class Natural(Method):
    """Trains on clean images.

    Equivalent to: ``F.cross_entropy(student(x), y)``.
    """

    name = "natural"
    presets: ClassVar[tuple[Preset, ...]] = (
        Preset(
            name="natural",
            method="natural",
            source="the customary recipe of CIFAR ResNets",
            epochs=200,
            milestones=(100, 150),
            weight_decay=5e-4,
        ),
    )
    selects_on = "clean"

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.detach()

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        logits = self.student(x)
        require_labels(y, logits)
        loss = F.cross_entropy(logits, y)
        return loss, {"loss": loss.detach(), "clean_accuracy": accuracy(logits, y)}
