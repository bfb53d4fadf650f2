"""The runs of an attack: its restarts, of each target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A run's number among restarts, and its target among the classes, likeliest 1; or none."""

    restart: int = 0
    rank: int | None = None


def places(n_restarts: int, targets: int | None = None) -> Iterator[Place]:
    """The runs in order: each target's restarts, the second likeliest class the first target; no
    target where `targets` is None."""
    for rank in [None] if targets is None else range(2, targets + 2):
        yield from (Place(restart, rank) for restart in range(n_restarts))
