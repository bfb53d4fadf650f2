"""N-FGSM, one-step adversarial training from strong noise (de Jorge et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastard import rows
from fastard.api import fgsm
from fastard.kinds import Norm, parse_norm
from fastard.methods.one_step import OneStep
from fastard.methods.options import BatchNormOptions
from fastard.methods.recipes import Preset


class NFGSM(OneStep):
    """Trains on one-step examples from noise wider than eps, not clipped to the ball.

    Equivalent to::

        x_noisy = (x + torch.empty_like(x).uniform_(-k * eps, k * eps)).clamp(0, 1)
        x_adv = fastard.fgsm(student, x_noisy, y, eps)
        F.cross_entropy(student(x_adv), y)

    So x' lies up to (k + 1) * eps from x. No teacher; the student sees x' alone. The published code
    attacks in train mode, so that the attack's pass updates BatchNorm statistics too: the preset
    does.

    Source: de Jorge et al. 2022 (arXiv 2202.01181), github.com/pdejorge/N-FGSM.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(BatchNormOptions):
        k: float = 2.0
        """Half width of the noise in units of eps."""
        step: float = 1.0
        """Size of the step (alpha) in units of eps."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("k", low=0)
            self._number("step", low=0)
            if parse_norm(self.norm) != Norm.Linf:
                raise ValueError(f"option norm must be Linf for n-fgsm, but is {self.norm!r}.")
            if isinstance(self.eps, torch.Tensor):
                raise ValueError("option eps must be one number for n-fgsm, but is a tensor.")

    options: Options
    name = "n-fgsm"
    presets: ClassVar[tuple[Preset, ...]] = (
        Preset(
            name="n-fgsm",
            method="n-fgsm",
            source="github.com/pdejorge/N-FGSM, train.py; it normalises inputs (give mean and "
            "std) and keeps the last epoch",
            options={"attack_mode": "train"},
            student="preactresnet18",
            epochs=30,
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
            self._noisy(x.detach()),
            y,
            options.step * options.eps,
            clip_min=options.clip_min,
            clip_max=options.clip_max,
            mode=options.attack_mode,
            bn_stats=options.bn_stats,
            precision=options.precision,
        )

    def _noisy(self, x: torch.Tensor) -> torch.Tensor:
        options, width = self.options, self.options.k * self.options.eps
        generator = options.generator
        device = options.noise_device or (x.device if generator is None else generator.device)
        noise = rows.drawn(torch.rand, x.shape, device=device, generator=generator).to(x)
        noise = noise * 2 * width - width
        return (x + noise).clamp(options.clip_min, options.clip_max)
