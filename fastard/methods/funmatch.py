"""FunMatch, function matching (Beyer et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fastard import losses, rows
from fastard.methods.base import Logs, Method, accuracy
from fastard.methods.options import MethodOptions, require_generator
from fastard.methods.recipes import Preset, customary


class FunMatch(Method):
    """Distils teachers on mixed clean images, of which every network sees the same view; no attack.

    Equivalent to::

        a = max(u, 1 - u), u = torch.rand(())
        view = a * x + (1 - a) * x.roll(1, 0)
        losses.funmatch(student(view), [teacher(view) for teacher in teachers])

    Teachers and student see the mixed view alone. No label enters the loss; the logged accuracy is
    that on the mixed view, of the label that weighs more in it.

    Source: Beyer et al. 2021 (arXiv 2106.05237), github.com/google-research/big_vision.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(MethodOptions):
        temperature: float = 1.0
        """1 in the paper for ImageNet, up to 10 on small data sets."""
        mixup: bool = True
        generator: torch.Generator | None = None

        def __post_init__(self) -> None:
            self._positive("temperature")
            self._flag("mixup")
            require_generator(self.generator)

    options: Options
    name = "funmatch"
    presets: ClassVar[tuple[Preset, ...]] = (
        replace(
            customary("funmatch"),
            source="the customary recipe of CIFAR ResNets; the published one, Adam for 1,200 "
            "epochs of ImageNet in batches of 4,096, is not for CIFAR",
            schedule="cosine",
            milestones=(),
        ),
    )
    least_teachers = 1
    most_teachers = None
    selects_on = "clean"

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The view that every network sees: the batch mixed with its neighbours, not attacked."""
        x = x.detach()
        if not self.options.mixup:
            return x
        generator = self.options.generator
        device = x.device if generator is None else generator.device
        share = torch.rand((), device=device, generator=generator).to(x)
        share = torch.maximum(share, 1 - share)
        return share * x + (1 - share) * rows.rolled(x)

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        teacher_logits = self._ask_teachers(x_adv)
        logits = self.student(x_adv)
        loss = losses.funmatch(logits, teacher_logits, self.options.temperature)
        return loss, {"loss": loss.detach(), "view_accuracy": accuracy(logits, y)}
