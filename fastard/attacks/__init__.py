"""Attacks as pure functions of buffers; they know neither models nor the engine's inside."""

from fastard.attacks.pgd import Moves, pgd
from fastard.attacks.start import Start, preserved_rng

__all__ = ["Moves", "Start", "pgd", "preserved_rng"]
