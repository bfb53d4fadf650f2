"""TRADES (Zhang et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fastard import losses
from fastard.methods.base import Logs, accuracy
from fastard.methods.options import AttackOptions
from fastard.methods.recipes import Preset
from fastard.methods.self_attack import SelfAttack

_RECIPE = Preset(
    name="trades",
    method="trades",
    source="github.com/yaodongyu/TRADES, train_trades_cifar10.py",
    student="wrn-34-10",
    epochs=76,
    milestones=(74, 89, 99),
)


class TRADES(SelfAttack):
    """Trains on clean images and holds the adversarial output near the clean one.

    Equivalent to::

        x_adv = fastard.pgd_kl(student, x, student_in_eval_mode(x))
        losses.trades(student(x), student(x_adv), y, beta)

    Source: Zhang et al. 2019 (arXiv 1901.08573), github.com/yaodongyu/TRADES.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(AttackOptions):
        beta: float = 6.0
        faithful: bool = False
        """Runs the clean images twice, x, x', x, as the published code does. Loss and gradient are
        those of two passes; the BatchNorm statistics are updated once more."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("beta", low=0)
            self._flag("faithful")

    options: Options
    name = "trades"
    presets: ClassVar[tuple[Preset, ...]] = (
        _RECIPE,
        replace(
            _RECIPE,
            name="trades-official",
            source=f"{_RECIPE.source}, which keeps the last epoch",
            options={"eps": 0.031, "alpha": 0.007, "faithful": True, "noise_device": "cpu"},
            selection="last",
            official=True,
        ),
    )

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        clean_logits = self.student(x)
        adv_logits = self.student(x_adv)
        target_logits = self.student(x) if self.options.faithful else clean_logits
        loss = losses.trades(
            clean_logits, adv_logits, y, self.options.beta, target_logits=target_logits
        )
        return loss, {
            "loss": loss.detach(),
            "clean_accuracy": accuracy(clean_logits, y),
            "robust_accuracy": accuracy(adv_logits, y),
        }
