"""Attacks as users call them: a model's program bound to an attack."""

from fastard.api.attack import AttackInfo
from fastard.api.functions import fgsm, pgd, pgd_ce, pgd_kl, pgd_kl_pair
from fastard.api.pair import PairPGD
from fastard.api.pgd import PGD

__all__ = ["PGD", "AttackInfo", "PairPGD", "fgsm", "pgd", "pgd_ce", "pgd_kl", "pgd_kl_pair"]
