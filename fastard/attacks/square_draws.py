"""Where Square Attack's windows and signs come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastard.attacks.draws import CounterDraws, OfficialDraws
from fastard.reference_square import PLACES

# Queries whose numbers share a key, so that they are the same whatever is asked for at once.
KEYED = 100


class SquareDraws(Protocol):
    """Uniform numbers of one run; `norm` is "Linf", "L2" or "L1".

    Attributes:
        at_once: for how many queries `queries` may be asked.
    """

    at_once: int

    def start(self, ids: Tensor, shape: Sequence[int], norm: str, tiles: int) -> Tensor:
        """Linf: [n, C, 1, W]; else [n, tiles, 1 + C] for images of `shape` [C, H, W]."""
        ...

    def queries(self, ids: Tensor, first: int, count: int, channels: int, norm: str) -> Tensor:
        """[n or 1, count, numbers of a query] for the queries from `first` on."""
        ...

    def ended(self, used: int) -> None:
        """Of the numbers last asked for, only those of `used` queries were."""
        ...


class OfficialSquares:
    """The official code's numbers, in its order; all samples have the same windows.

    In L2 and L1 as many signs are drawn as samples are left, so that `ids` must be just these.
    """

    def __init__(self, draws: OfficialDraws, norm: str) -> None:
        if draws.generator is None:
            raise ValueError("draws must have a generator of their own: Square takes some back.")
        self.draws, self.at_once = draws, KEYED if norm == "Linf" else 1
        self._generator = draws.generator
        self._before: Tensor | None = None
        self._numbers = 0

    def start(self, ids: Tensor, shape: Sequence[int], norm: str, tiles: int) -> Tensor:
        channels, _, width = shape
        if norm == "Linf":
            return self.draws.rand(ids, (channels, 1, width))
        found = []
        for _ in range(tiles):
            turned = self.draws.rand(ids, (1,), shared=True).expand(len(ids), 1)
            found.append(torch.cat((turned, self.draws.rand(ids, (channels,))), 1))
        return torch.stack(found, 1)

    def queries(self, ids: Tensor, first: int, count: int, channels: int, norm: str) -> Tensor:
        self._before = self._generator.get_state()
        self._numbers = PLACES[norm] + channels
        if norm == "Linf":
            return self.draws.rand(ids, (count, self._numbers), shared=True)
        places = self.draws.rand(ids, (1, PLACES[norm]), shared=True)
        signs = self.draws.rand(ids, (1, channels))
        return torch.cat((places.expand(len(ids), 1, -1), signs), 2)

    def ended(self, used: int) -> None:
        if self.at_once == 1 or self._before is None:
            return
        self._generator.set_state(self._before)
        numbers = used * self._numbers
        torch.rand(numbers, generator=self._generator, device=self._generator.device)


class KeyedSquares:
    """Each sample's own numbers, keyed by (seed, sample, restart, query)."""

    def __init__(self, seed: int, restart: int) -> None:
        self.restart, self.at_once = restart, KEYED
        self._start = CounterDraws(seed, "square", part=0)
        self._queries = CounterDraws(seed, "square", part=1)

    def start(self, ids: Tensor, shape: Sequence[int], norm: str, tiles: int) -> Tensor:
        channels, _, width = shape
        numbers = (channels, 1, width) if norm == "Linf" else (tiles, 1 + channels)
        return self._start.rand(ids, numbers, restart=self.restart)

    def queries(self, ids: Tensor, first: int, count: int, channels: int, norm: str) -> Tensor:
        if first % KEYED or count > KEYED:
            raise ValueError(f"queries are drawn from a multiple of {KEYED} on, up to as many.")
        shape = (count, PLACES[norm] + channels)
        return self._queries.rand(ids, shape, restart=self.restart, iteration=first)

    def ended(self, used: int) -> None:
        """Nothing depends on what was drawn before."""
