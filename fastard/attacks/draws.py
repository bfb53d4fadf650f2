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


class OfficialDraws:
    """One generator's numbers in the order in which they are asked for.

    Equivalent to: ``torch.manual_seed(seed)``, then ``torch.rand(shape).to(device)`` at each call,
    by a generator of its own. What is shared is drawn once.
    """

    def __init__(self, seed: float, device: str | torch.device = "cpu") -> None:
        self.generator = torch.Generator(device).manual_seed(int(seed))

    def _shape(self, ids: Tensor, shape: Sequence[int], shared: bool) -> tuple[int, ...]:
        return (1 if shared else len(ids), *shape)

    def rand(
        self, ids: Tensor, shape: Sequence[int], *,
        restart: int = 0, target: int = 0, iteration: int = 0, shared: bool = False,
    ) -> Tensor:  # fmt: skip
        drawn = torch.rand(
            self._shape(ids, shape, shared),
            generator=self.generator,
            device=self.generator.device,
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
            device=self.generator.device,
            dtype=torch.float32,
        )
        return drawn.to(ids.device)


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
        self._stream = STREAMS.index(self.attack)

    def _draw(
        self, ids: Tensor, shape: Sequence[int], restart: int, target: int, iteration: int,
        normal: bool,
    ) -> Tensor:  # fmt: skip
        # 4 bits of attack, 4 of part, 8 of restart, 16 of target.
        stream = (self._stream << 28) | (self.part << 24) | ((restart & 0xFF) << 16)
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
