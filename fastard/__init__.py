"""fastard: compiled kernels for adversarial training and adversarially robust distillation."""

__version__ = "0.1.0"

import importlib
from typing import TYPE_CHECKING, Any

from fastard import ops
from fastard.api import (
    PGD,
    APGDInfo,
    AttackInfo,
    CWInfo,
    FABInfo,
    PairPGD,
    SquareInfo,
    apgd,
    cw_l2,
    cw_linf,
    fab,
    fgsm,
    pgd,
    pgd_ce,
    pgd_kl,
    pgd_kl_pair,
    square,
)
from fastard.settings import debug

if TYPE_CHECKING:
    from fastard import autoattack, compat, data, engine, losses, methods, models
    from fastard.autoattack import AutoAttack

__all__ = [
    "PGD", "APGDInfo", "AttackInfo", "AutoAttack", "CWInfo", "FABInfo", "PairPGD", "SquareInfo",
    "apgd", "autoattack", "compat", "cw_l2", "cw_linf", "data", "debug", "engine", "fab", "fgsm",
    "losses", "methods", "models", "ops", "pgd", "pgd_ce", "pgd_kl", "pgd_kl_pair", "square",
]  # fmt: skip

_LAZY = ("autoattack", "compat", "data", "engine", "losses", "methods", "models")


def __getattr__(name: str) -> Any:
    """Submodules on first use: attacks alone need neither torchvision nor the trainer."""
    if name == "AutoAttack":
        return importlib.import_module("fastard.autoattack").AutoAttack
    if name in _LAZY:
        return importlib.import_module(f"fastard.{name}")
    raise AttributeError(f"module 'fastard' has no attribute {name!r}")
