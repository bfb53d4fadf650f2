"""Attacks as users call them: a model's program bound to an attack."""

from fastard.api.apgd import APGDInfo, apgd
from fastard.api.attack import AttackInfo
from fastard.api.cw import CWInfo, cw_l2, cw_linf
from fastard.api.fab import FABInfo, fab
from fastard.api.functions import clean_eval_logits, fgsm, pgd, pgd_ce, pgd_kl, pgd_kl_pair
from fastard.api.linearised import linearised
from fastard.api.pair import PairPGD
from fastard.api.pgd import PGD
from fastard.api.square import SquareInfo, square
from fastard.engine import inner_model

__all__ = [
    "PGD", "APGDInfo", "AttackInfo", "CWInfo", "FABInfo", "PairPGD", "SquareInfo", "apgd",
    "clean_eval_logits", "cw_l2", "cw_linf", "fab", "fgsm", "inner_model", "linearised", "pgd",
    "pgd_ce", "pgd_kl", "pgd_kl_pair", "square",
]  # fmt: skip
