"""CIFAR ResNets, as RSLAD (zibojia/RSLAD) and kuangliu/pytorch-cifar define them."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastard.models.layers import conv1x1, conv3x3, global_avg_pool, stage


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, the activation after the sum."""

    def __init__(self, in_planes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_planes, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(
                conv1x1(in_planes, planes, stride), nn.BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    """Residual network with a 3x3 stem of stride 1 and widths 64, 128, 256, 512.

    Input [N, in_channels, H, W], output logits [N, num_classes].
    """

    def __init__(
        self, num_blocks: Sequence[int], num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(BasicBlock, 64, 64, num_blocks[0], stride=1)
        self.layer2 = stage(BasicBlock, 64, 128, num_blocks[1], stride=2)
        self.layer3 = stage(BasicBlock, 128, 256, num_blocks[2], stride=2)
        self.layer4 = stage(BasicBlock, 256, 512, num_blocks[3], stride=2)
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(global_avg_pool(out))
