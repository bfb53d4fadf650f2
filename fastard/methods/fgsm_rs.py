"""FGSM-RS, fast adversarial training from a random start (Wong et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastard.methods.one_step import OneStep, recipe
from fastard.methods.recipes import Preset


class FGSMRS(OneStep):
    """Trains on one-step examples from a uniform start.

    Equivalent to::

        x_adv = fastard.fgsm(student, x, y, eps, alpha=1.25 * eps, random_start="uniform")
        F.cross_entropy(student(x_adv), y)

    No teacher; the student sees x' alone. The published code attacks in train mode, so that the
    attack's pass updates BatchNorm statistics too: the preset does. With long schedules the method
    is known to overfit to its one step; early stopping guards against that.

    Source: Wong et al. 2020 (arXiv 2001.03994), github.com/locuslab/fast_adversarial.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(OneStep.Options):
        step: float = 1.25
        """Size of the step (alpha) in units of eps."""

    options: Options
    name = "fgsm-rs"
    presets: ClassVar[tuple[Preset, ...]] = (
        recipe("fgsm-rs", "github.com/locuslab/fast_adversarial, CIFAR10/train_fgsm.py", 15),
    )

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._step(x, y, random_start="uniform")
