"""PGD on the cross entropy of the labels, the attack of PGD-AT, MART, ARD, IAD and others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fastard.api import pgd_ce
from fastard.methods.base import Method
from fastard.methods.options import AttackOptions, BatchNormOptions


class LabelAttack(Method):
    """A method that attacks the student alone.

    Its attack is equivalent to: ``fastard.pgd_ce(student, x, y)``.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(AttackOptions, BatchNormOptions):
        """Settings of the attack."""

    options: Options

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return pgd_ce(self.student, x, y, **self._mode(), **self._attack_arguments())

    def _mode(self) -> dict[str, Any]:
        return {"mode": self.options.attack_mode, "bn_stats": self.options.bn_stats}
