"""CIFAR MobileNetV2, as RSLAD (zibojia/RSLAD) and kuangliu/pytorch-cifar define it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastard.models.layers import conv1x1, conv3x3, global_avg_pool

# (expansion, planes, blocks, stride of the first block); the stem and the second stage have stride
# 1 where the ImageNet network has 2, because the images are 32x32.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each plane by 3x3, project by 1x1; a shortcut where the stride is 1."""

    def __init__(self, in_planes: int, planes: int, expansion: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        wide = expansion * in_planes
        self.conv1 = conv1x1(in_planes, wide)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, stride=stride, padding=1, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.conv3 = conv1x1(wide, planes)
        self.bn3 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride == 1 and in_planes != planes:
            self.shortcut = nn.Sequential(conv1x1(in_planes, planes), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out + self.shortcut(x) if self.stride == 1 else out


class MobileNetV2(nn.Module):
    """MobileNetV2 with a stem of stride 1 and plain ReLU.

    Input [N, in_channels, H, W], output logits [N, num_classes].
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, 32)
        self.bn1 = nn.BatchNorm2d(32)
        blocks: list[nn.Module] = []
        in_planes = 32
        for expansion, planes, num_blocks, first_stride in STAGES:
            for stride in [first_stride] + [1] * (num_blocks - 1):
                blocks.append(InvertedResidual(in_planes, planes, expansion, stride))
                in_planes = planes
        self.layers = nn.Sequential(*blocks)
        self.conv2 = conv1x1(in_planes, 1280)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(F.relu(self.bn1(self.conv1(x))))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.linear(global_avg_pool(out))
