"""Wide ResNet, as TRADES (yaodongyu/TRADES) defines it, so that its released checkpoints load."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from fastard.models.layers import conv1x1, conv3x3, global_avg_pool


class WideBlock(nn.Module):
    """Pre-activation block; where the width changes, the shortcut follows the first activation."""

    def __init__(self, in_planes: int, planes: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = conv3x3(in_planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes)
        self.drop_rate = drop_rate
        self.convShortcut = None if in_planes == planes else conv1x1(in_planes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        out = self.relu2(self.bn2(self.conv1(out)))
        if self.drop_rate > 0:
            out = F.dropout(out, p=self.drop_rate, training=self.training)
        return shortcut + self.conv2(out)


class WideStage(nn.Module):
    """`num_blocks` blocks under the name `layer`, the first of which may stride."""

    def __init__(
        self, num_blocks: int, in_planes: int, planes: int, stride: int, drop_rate: float
    ) -> None:
        super().__init__()
        first = WideBlock(in_planes, planes, stride, drop_rate)
        rest = (WideBlock(planes, planes, 1, drop_rate) for _ in range(num_blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """Wide ResNet of depth 6n + 4 with stages of width 16k, 32k, 64k.

    Input [N, in_channels, H, W], output logits [N, num_classes]. TRADES' definition holds a stage
    `sub_block1` that its forward never uses but that its checkpoints contain; `sub_block=False`
    leaves it out, for checkpoints of code that does not have it.
    """

    def __init__(
        self,
        depth: int = 34,
        widen_factor: int = 10,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        drop_rate: float = 0.0,
        sub_block: bool = True,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 != 0:
            raise ValueError(f"depth of a Wide ResNet is {depth} but must be 6n + 4 with n >= 1")
        if widen_factor < 1:
            raise ValueError(f"widen_factor of a Wide ResNet is {widen_factor} but must be >= 1")
        n = (depth - 4) // 6
        widths = [16 * widen_factor * 2**i for i in range(3)]
        self.conv1 = conv3x3(in_channels, 16)
        self.block1 = WideStage(n, 16, widths[0], 1, drop_rate)
        if sub_block:
            self.sub_block1 = WideStage(n, 16, widths[0], 1, drop_rate)
        self.block2 = WideStage(n, widths[0], widths[1], 2, drop_rate)
        self.block3 = WideStage(n, widths[1], widths[2], 2, drop_rate)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(widths[2], num_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        out = self.relu(self.bn1(out))
        return self.fc(global_avg_pool(out))
