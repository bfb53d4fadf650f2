"""`counter_noise`: random numbers keyed by what they are for."""

from __future__ import annotations

import torch
from torch import Tensor

from fastard import checks, reference_noise
from fastard.ops._backend import implementation


def counter_noise(
    ids: Tensor, numbers: int, seed: int, stream: int, iteration: int, normal: bool = False
) -> Tensor:
    """[len(ids), numbers] fp32 from Philox4x32-10: uniform in [0, 1), or normal.

    Equal arguments give equal numbers, whatever else is drawn and however samples are batched;
    uniform ones to the bit on every device, normal ones within a few units in the last place.

    Args:
        ids: [B] int64, the samples; their lowest 32 bits count.
        numbers: how many for each.
        seed: 64 bits. stream, iteration: 32 bits each.
    Raises:
        TypeError, ValueError: ids that are not such, in one sentence.

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 1:
        raise TypeError(f"ids must be an int64 tensor [samples], but are {checks.describe(ids)}.")
    if numbers < 0:
        raise ValueError(f"numbers must not be negative, but is {numbers}.")
    noise = implementation("counter_noise", ids)
    if noise is None:
        return reference_noise.counter_noise(ids, numbers, seed, stream, iteration, normal)
    out = torch.empty(len(ids), numbers, dtype=torch.float32, device=ids.device)
    # The operator's integers are signed: the same 64 bits.
    signed = (seed & (1 << 64) - 1) - ((seed & 1 << 63) << 1)
    noise.default(ids.contiguous(), signed, stream, iteration, normal, out)
    return out
