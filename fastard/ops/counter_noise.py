"""`counter_noise`: random numbers keyed by what they are for."""

from __future__ import annotations

from torch import Tensor

from fastard import reference_noise


def counter_noise(
    ids: Tensor, numbers: int, seed: int, stream: int, iteration: int, normal: bool = False
) -> Tensor:
    """[len(ids), numbers] fp32 from Philox4x32-10: uniform in [0, 1), or normal.

    Equal arguments give equal numbers, whatever else is drawn and however samples are batched.

    Args:
        ids: [B] int64, the samples; their lowest 32 bits count.
        seed: 64 bits. stream, iteration: 32 bits each.
    """
    return reference_noise.counter_noise(ids, numbers, seed, stream, iteration, normal)
