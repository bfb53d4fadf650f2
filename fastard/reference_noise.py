"""Noise that depends on what it is for, not on when it is drawn: Philox in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MULTIPLIERS, WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
LOW, ROUNDS = 0xFFFFFFFF, 10


def philox(counter: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Philox4x32-10: four int64 tensors of 32 random bits from a counter of four.

    Args:
        counter: four int64 tensors of one shape, of values in [0, 2**32).
        seed: 64 bits, the key.

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & LOW, (seed >> 32) & LOW
    for _ in range(ROUNDS):
        # The product of two 32-bit numbers wraps in an int64; its bits are right.
        a, b = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((b >> 32) & LOW) ^ c1 ^ k0, b & LOW, ((a >> 32) & LOW) ^ c3 ^ k1, a & LOW
        )  # fmt: skip
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0, c1, c2, c3


def counter_noise(
    ids: Tensor, numbers: int, seed: int, stream: int, iteration: int, normal: bool
) -> Tensor:
    """[len(ids), numbers] fp32: uniform in [0, 1), or normal by Box and Muller's transform.

    Number i of a sample is lane i % 4 of Philox at the counter (i // 4, id, stream, iteration), its
    highest 24 bits over 2**24. Of a normal pair (2i, 2i + 1), the uniforms u, v make
    ``sqrt(-2 ln(u + 2**-24)) * (cos(2 pi v), sin(2 pi v))``.
    """
    blocks = torch.arange(-(-numbers // 4), device=ids.device)
    shape = (len(ids), len(blocks))
    counter = (
        blocks.expand(shape),
        (ids & LOW)[:, None].expand(shape),
        torch.full(shape, stream & LOW, device=ids.device),
        torch.full(shape, iteration & LOW, device=ids.device),
    )
    bits = torch.stack(philox(counter, seed), 2).flatten(1)
    uniform = (bits >> 8).float() * 2.0**-24
    if normal:
        u, v = uniform[:, 0::2], uniform[:, 1::2]
        radius = (-2 * (u + 2.0**-24).log()).sqrt()
        angle = 2 * math.pi * v
        uniform = torch.stack((radius * angle.cos(), radius * angle.sin()), 2).flatten(1)
    return uniform[:, :numbers]
