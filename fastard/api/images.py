"""What attacks on images share: their checks, the dtype that they search in, what they return."""

from __future__ import annotations

import torch
from torch import Tensor

from fastard import checks, ops


def checked(x: Tensor, y: Tensor, clip_min: float, clip_max: float) -> Tensor:
    """The labels, int64 on x's device; refuses what is no batch of images in the box."""
    checks.box(clip_min, clip_max)
    checks.floating(x, "x")
    if x.dim() < 2:
        raise ValueError(f"x must be a batch of images [B, C, H, W], but is {list(x.shape)}.")
    checks.in_box(x, clip_min, clip_max)
    return checks.labels(y, len(x), x.device).to(torch.int64)


def noise_place(
    noise_device: str | torch.device | None, generator: torch.Generator | None, x: Tensor
) -> torch.device:
    """Where noise is drawn: where asked, where the generator is, where x is."""
    checks.generator(generator)
    device = checks.device(noise_device, "noise_device")
    if device is not None:
        return device
    return generator.device if generator is not None else x.device


def searched(x: Tensor) -> Tensor:
    """x, detached, in the dtype that it is searched in: fp64 as it is, all else in fp32."""
    return x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()


def returned(adv: Tensor, x: Tensor) -> Tensor:
    """Adversarials in x's dtype, rounded towards x, and in x's memory format."""
    if adv.dtype != x.dtype:
        adv = ops.round_towards(adv, x.detach())
    return adv if adv.stride() == x.stride() else torch.empty_like(x).copy_(adv)
