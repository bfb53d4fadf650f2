"""N-FGSM, one-step adversarial training from strong noise (de Jorge et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastard import rows
from fastard.kinds import Norm, parse_norm
from fastard.methods.one_step import OneStep, recipe
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
    class Options(OneStep.Options):
        k: float = 2.0
        """Half width of the noise in units of eps."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("k", low=0)
            if parse_norm(self.norm) != Norm.Linf:
                raise ValueError(f"option norm must be Linf for n-fgsm, but is {self.norm!r}.")
            if isinstance(self.eps, torch.Tensor):
                raise ValueError("option eps must be one number for n-fgsm, but is a tensor.")

    options: Options
    name = "n-fgsm"
    presets: ClassVar[tuple[Preset, ...]] = (
        recipe("n-fgsm", "github.com/pdejorge/N-FGSM, train.py", 30),
    )

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # The ball is as wide as the step, so that the step is the noisy image's whole way.
        return self._step(self._noisy(x.detach()), y, eps=self.options.step * self.options.eps)

    def _noisy(self, x: torch.Tensor) -> torch.Tensor:
        options, width = self.options, self.options.k * self.options.eps
        generator = options.generator
        device = options.noise_device or (x.device if generator is None else generator.device)
        noise = rows.drawn(torch.rand, x.shape, device=device, generator=generator).to(x)
        noise = noise * 2 * width - width
        return (x + noise).clamp(options.clip_min, options.clip_max)
