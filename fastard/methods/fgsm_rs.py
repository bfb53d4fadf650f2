"""FGSM-RS, fast adversarial training from a random start (Wong et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastard.api import fgsm
from fastard.methods.one_step import OneStep
from fastard.methods.options import BatchNormOptions
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
    class Options(BatchNormOptions):
        step: float = 1.25
        """Size of the step (alpha) in units of eps."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("step", low=0)

    options: Options
    name = "fgsm-rs"
    presets: ClassVar[tuple[Preset, ...]] = (
        Preset(
            name="fgsm-rs",
            method="fgsm-rs",
            source="github.com/locuslab/fast_adversarial, CIFAR10/train_fgsm.py; it "
            "normalises inputs (give mean and std) and keeps the last epoch",
            options={"attack_mode": "train"},
            student="preactresnet18",
            epochs=15,
            schedule="cyclic",
            peak=0.5,
            lr=0.2,
            weight_decay=5e-4,
        ),
    )

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        options = self.options
        return fgsm(
            self.student,
            x,
            y,
            options.eps,
            alpha=options.step * options.eps,
            random_start="uniform",
            norm=options.norm,
            clip_min=options.clip_min,
            clip_max=options.clip_max,
            mode=options.attack_mode,
            bn_stats=options.bn_stats,
            precision=options.precision,
            noise_device=options.noise_device,
            generator=options.generator,
        )
