"""Where an evaluation attack's random numbers come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fastard import ops

# The attacks that draw, by the number that keeps their streams apart.
STREAMS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square", "pgd", "cw")
MOST_RESTARTS = 256


def require_keys(n_restarts: int) -> None:
    """Raises ValueError for more restarts than `CounterDraws` has numbers for."""
    if n_restarts > MOST_RESTARTS:
        raise ValueError(
            f"n_restarts must be at most {MOST_RESTARTS} with draws keyed by sample, but is "
            f"{n_restarts}."
        )


def require_seed(seed: float) -> None:
    """Raises ValueError for a seed of more than 64 bits, as torch's generators take them."""
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be from -2**63 to 2**64 - 1, but is {seed}.")


class Draws(Protocol):
    """Uniform or normal fp32 numbers for the samples `ids`, [B] int64, on their device.

    `shape` is a sample's; the result is [B, *shape], or, where `shared` lets all samples have the
    same numbers, perhaps [1, *shape]. restart, target and iteration say what they are for.
    """

    def rand(
        self, ids: Tensor, shape: Sequence[int], *,
        restart: int = 0, target: int = 0, iteration: int = 0, shared: bool = False,
    ) -> Tensor: ...  # fmt: skip

    def randn(
        self, ids: Tensor, shape: Sequence[int], *,
        restart: int = 0, target: int = 0, iteration: int = 0, shared: bool = False,
    ) -> Tensor: ...  # fmt: skip


class GeneratorDraws:
    """One generator's numbers (None: torch's global one) in the order in which they are asked for.

    Equivalent to: ``torch.rand(shape, generator=generator, device=device).to(ids.device)`` at each
    call. What is shared is drawn once.
    """

    def __init__(
        self, generator: torch.Generator | None, device: str | torch.device = "cpu"
    ) -> None:
        self.generator, self.device = generator, torch.device(device)

    def _shape(self, ids: Tensor, shape: Sequence[int], shared: bool) -> tuple[int, ...]:
        return (1 if shared else len(ids), *shape)

    def rand(
        self, ids: Tensor, shape: Sequence[int], *,
        restart: int = 0, target: int = 0, iteration: int = 0, shared: bool = False,
    ) -> Tensor:  # fmt: skip
        drawn = torch.rand(
            self._shape(ids, shape, shared),
            generator=self.generator,
            device=self.device,
            dtype=torch.float32,
        )
        return drawn.to(ids.device)

    def randn(
        self, ids: Tensor, shape: Sequence[int], *,
        restart: int = 0, target: int = 0, iteration: int = 0, shared: bool = False,
    ) -> Tensor:  # fmt: skip
        drawn = torch.randn(
            self._shape(ids, shape, shared),
            generator=self.generator,
            device=self.device,
            dtype=torch.float32,
        )
        return drawn.to(ids.device)


class OfficialDraws(GeneratorDraws):
    """As `GeneratorDraws`, of a generator of its own.

    Equivalent to: ``torch.manual_seed(seed)``, then ``torch.rand(shape).to(device)`` at each call.
    """

    def __init__(self, seed: float, device: str | torch.device = "cpu") -> None:
        require_seed(seed)
        super().__init__(torch.Generator(device).manual_seed(int(seed)), device)


@dataclass
class CounterDraws:
    """Numbers keyed by (seed, sample, attack, restart, target, iteration).

    They are the same for any batch size, order and number of processes. Two calls for the same key
    give the same numbers: `part` tells apart several draws of one iteration.
    """

    seed: int
    attack: str
    part: int = 0
    _stream: int = field(init=False)

    def __post_init__(self) -> None:
        require_seed(self.seed)
        self._stream = STREAMS.index(self.attack)

    def _draw(
        self, ids: Tensor, shape: Sequence[int], restart: int, target: int, iteration: int,
        normal: bool,
    ) -> Tensor:  # fmt: skip
        require_keys(restart + 1)
        # 4 bits of attack, 4 of part, 8 of restart, 16 of target.
        stream = (self._stream << 28) | (self.part << 24) | (restart << 16)
        stream |= target & 0xFFFF
        numbers = math.prod(shape)
        drawn = ops.counter_noise(ids, numbers, self.seed, stream, iteration, normal)
        return drawn.view(len(ids), *shape)

    def rand(
        self, ids: Tensor, shape: Sequence[int], *,
        restart: int = 0, target: int = 0, iteration: int = 0, shared: bool = False,
    ) -> Tensor:  # fmt: skip
        return self._draw(ids, shape, restart, target, iteration, False)

    def randn(
        self, ids: Tensor, shape: Sequence[int], *,
        restart: int = 0, target: int = 0, iteration: int = 0, shared: bool = False,
    ) -> Tensor:  # fmt: skip
        return self._draw(ids, shape, restart, target, iteration, True)
