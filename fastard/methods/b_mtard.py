"""B-MTARD: MTARD whose teachers' temperatures are balanced as well (Zhao et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from fastard import losses, rows
from fastard.methods.mtard import MTARD, Pair
from fastard.methods.mtard import RECIPE as MTARD_RECIPE
from fastard.methods.recipes import Preset

RECIPE = replace(
    MTARD_RECIPE,
    name="b-mtard",
    method="b-mtard",
    source="github.com/zhaoshiji123/MTARD-extension, resnet18_mtard_cifar10.py",
)


class BMTARD(MTARD):
    """MTARD with a temperature for each teacher, moved until both are equally sure.

    Equivalent to MTARD on ``robust(x_adv) / t_adv`` and ``natural(x) / t_nat``, where after each
    step, with e the mean of p * log(p + 1e-5) of either teacher::

        t_adv = (t_adv - rate * sign(e_adv / e_nat - 1)).clamp(1, 10)
        t_nat = (t_nat - rate * sign(e_nat / e_adv - 1)).clamp(1, 10)

    The student's temperature is 1 and there is no factor t**2. Teachers, order of the passes and
    their number are MTARD's. The temperatures are a buffer.

    Source: Zhao et al. 2024 (TPAMI), github.com/zhaoshiji123/MTARD-extension.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(MTARD.Options):
        temperature_rate: float = 0.001
        """How far a temperature moves in a step, before the first drop."""
        max_temperature: float = 10.0

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("temperature_rate", low=0)
            self._number("max_temperature", low=1)

    options: Options
    name = "b-mtard"
    selects_on = "weighted"
    presets: ClassVar[tuple[Preset, ...]] = (
        RECIPE,
        replace(
            RECIPE,
            name="b-mtard-official",
            source=f"{RECIPE.source}, which selects by the mean of clean and PGD-20 accuracy",
            options={"noise_device": "cpu"},
            selection="test-selected",
            val_steps=20,
            val_alpha=0.003,
            eval_every=20,
            eval_from=215,
            official=True,
        ),
    )
    temperatures: torch.Tensor

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        # Of the robust and the natural teacher.
        self.register_buffer("temperatures", torch.ones(2, dtype=torch.float64))

    @torch.no_grad()
    def _targets(self, robust: torch.Tensor, natural: torch.Tensor) -> Pair:
        options = self.options
        now = self.temperatures.to(robust.dtype)
        tempered = (robust / now[0], natural / now[1])
        adv, nat = (rows.mean(losses.negative_entropy(logits, 1e-5)) for logits in tempered)
        step = torch.stack([(adv / nat - 1).sign(), (nat / adv - 1).sign()])
        rate = options.temperature_rate * self.rate_factor
        self.temperatures.sub_(rate * step).clamp_(1, options.max_temperature)
        return tempered
