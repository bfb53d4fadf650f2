"""PGD on the divergence of teacher and student at x', through both: the attack of AdaAD and kin."""

from __future__ import annotations

import torch

from fastard.api import pgd_kl_pair
from fastard.methods.base import Method
from fastard.methods.options import AttackOptions


class PairAttack(Method):
    """A method that attacks where student and teacher differ most.

    Its attack is equivalent to: ``fastard.pgd_kl_pair(student, teacher, x)``.
    """

    Options = AttackOptions
    options: AttackOptions
    least_teachers = most_teachers = 1

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return pgd_kl_pair(self.student, self.teachers[0], x, **self._attack_arguments())
