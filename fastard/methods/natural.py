"""Natural training: cross entropy on clean images, no attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from fastard.methods.base import Logs, Method, accuracy, require_labels
from fastard.methods.options import MethodOptions
from fastard.methods.recipes import Preset, customary


class Natural(Method):
    """Trains on clean images.

    Equivalent to: ``F.cross_entropy(student(x), y, label_smoothing=label_smoothing)``.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(MethodOptions):
        label_smoothing: float = 0.0

        def __post_init__(self) -> None:
            self._number("label_smoothing", low=0, high=1)

    options: Options
    name = "natural"
    presets: ClassVar[tuple[Preset, ...]] = (customary("natural"),)
    selects_on = "clean"

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.detach()

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        logits = self.student(x)
        require_labels(y, logits)
        loss = F.cross_entropy(logits, y, label_smoothing=self.options.label_smoothing)
        return loss, {"loss": loss.detach(), "clean_accuracy": accuracy(logits, y)}
