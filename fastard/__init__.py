"""fastard: compiled kernels for adversarial training and adversarially robust distillation."""

__version__ = "0.1.0"

import importlib
from typing import TYPE_CHECKING, Any

from fastard import ops
from fastard.api import (
    PGD,
    APGDInfo,
    AttackInfo,
    FABInfo,
    PairPGD,
    apgd,
    fab,
    fgsm,
    pgd,
    pgd_ce,
    pgd_kl,
    pgd_kl_pair,
)
from fastard.settings import debug

if TYPE_CHECKING:
    from fastard import compat, data, engine, losses, methods, models

__all__ = [
    "PGD", "APGDInfo", "AttackInfo", "FABInfo", "PairPGD", "apgd", "compat", "data", "debug",
    "engine", "fab", "fgsm", "losses", "methods", "models", "ops", "pgd", "pgd_ce", "pgd_kl",
    "pgd_kl_pair",
]  # fmt: skip

_LAZY = ("compat", "data", "engine", "losses", "methods", "models")


def __getattr__(name: str) -> Any:
    """Submodules on first use: attacks alone need neither torchvision nor the trainer."""
    if name in _LAZY:
        return importlib.import_module(f"fastard.{name}")
    raise AttributeError(f"module 'fastard' has no attribute {name!r}")
