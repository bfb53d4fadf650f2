"""Fast adversarial training: one-step examples, and the cross entropy on them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F

from fastard.api import fgsm
from fastard.methods.base import Logs, Method, accuracy, require_labels
from fastard.methods.options import BatchNormOptions
from fastard.methods.recipes import Preset


class OneStep(Method):
    """A method whose loss is ``F.cross_entropy(student(x_adv), y)`` after one step of the attack.

    No teacher; the student sees x' alone. The published codes attack in train mode, so that the
    attack's pass updates BatchNorm statistics too: the presets do.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(BatchNormOptions):
        step: float = 1.0
        """Size of the step (alpha) in units of eps."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("step", low=0)

    options: Options

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        logits = self.student(x_adv)
        require_labels(y, logits)
        loss = F.cross_entropy(logits, y)
        return loss, {"loss": loss.detach(), "robust_accuracy": accuracy(logits, y)}

    def _step(self, x: torch.Tensor, y: torch.Tensor, **changed: Any) -> torch.Tensor:
        """One step of size step * eps from x, in the ball around it unless `changed` says more."""
        options = self.options
        given = {item.name: getattr(options, item.name) for item in fields(BatchNormOptions)}
        given["mode"] = given.pop("attack_mode")
        return fgsm(self.student, x, y, **{**given, "alpha": options.step * options.eps, **changed})


def recipe(name: str, source: str, epochs: int) -> Preset:
    """The recipe that both methods were published with, but for their epochs."""
    return Preset(
        name=name,
        method=name,
        source=f"{source}; it normalises inputs (give mean and std) and keeps the last epoch",
        options={"attack_mode": "train"},
        student="preactresnet18",
        epochs=epochs,
        schedule="cyclic",
        peak=0.5,
        lr=0.2,
        weight_decay=5e-4,
    )
