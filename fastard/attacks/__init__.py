"""Attacks as pure functions of buffers; they know neither models nor the engine's inside."""

from fastard.attacks.pgd import Moves, pgd
from fastard.attacks.start import STARTS, Start, preserved_rng

__all__ = ["STARTS", "Moves", "Start", "pgd", "preserved_rng"]
