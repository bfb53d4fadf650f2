"""PGD on the divergence from the student's own clean output: the attack of TRADES, LBGAT, HAT."""

from __future__ import annotations

import torch

from fastard.api import clean_eval_logits, pgd_kl
from fastard.methods.base import Method, require_labels
from fastard.methods.options import AttackOptions


class SelfAttack(Method):
    """A method that attacks the student against its own clean output.

    Its attack is equivalent to: ``fastard.pgd_kl(student, x, student_in_eval_mode(x))``; published
    codes compute the clean output again in every step, which gives the same images.
    """

    Options = AttackOptions
    options: AttackOptions

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        clean_logits = clean_eval_logits(self.student, x, self.options.precision)
        # Here, where the student's statistics are still as they were.
        require_labels(y, clean_logits)
        return pgd_kl(self.student, x, clean_logits, **self._attack_arguments())
