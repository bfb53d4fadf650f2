"""What several of the networks share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def global_avg_pool(x: Tensor) -> Tensor:
    """Average every feature map: [N, C, H, W] -> [N, C].

    Equivalent to: `F.avg_pool2d(x, k).flatten(1)` with the papers' fixed k (4 or 8) on 32x32
    images, to the bit, which `x.mean((2, 3))` is not; other image sizes work as well.
    """
    return torch.flatten(F.avg_pool2d(x, x.shape[-2:]), 1)


def conv3x3(in_planes: int, planes: int, stride: int = 1) -> nn.Conv2d:
    """A padded 3x3 convolution without bias."""
    return nn.Conv2d(in_planes, planes, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(in_planes: int, planes: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_planes, planes, kernel_size=1, stride=stride, bias=False)


def stage(
    block: Callable[[int, int, int], nn.Module],
    in_planes: int,
    planes: int,
    num_blocks: int,
    stride: int,
) -> nn.Sequential:
    """A row of `block(in_planes, planes, stride)`; the first changes width and resolution."""
    first = block(in_planes, planes, stride)
    return nn.Sequential(first, *(block(planes, planes, 1) for _ in range(num_blocks - 1)))
