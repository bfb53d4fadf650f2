"""Pre-activation ResNet-18 of "Overfitting in adversarially robust deep learning" (Rice et al.).

The definition of locuslab/robust_overfitting: kuangliu/pytorch-cifar's network with a batch norm
and a ReLU before the pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastard.models.layers import conv1x1, conv3x3, global_avg_pool, stage


class PreActBlock(nn.Module):
    """Normalisation and activation before each 3x3 convolution; the shortcut follows the first."""

    def __init__(self, in_planes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = conv3x3(in_planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(conv1x1(in_planes, planes, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out += shortcut
        return out


class PreActResNet(nn.Module):
    """Pre-activation residual network for CIFAR, widths 64, 128, 256, 512.

    Input [N, in_channels, H, W], output logits [N, num_classes]. `final_bn=False` leaves out the
    last batch norm and ReLU, which is kuangliu/pytorch-cifar's network.
    """

    def __init__(
        self,
        num_blocks: Sequence[int],
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        final_bn: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, 64)
        self.layer1 = stage(PreActBlock, 64, 64, num_blocks[0], stride=1)
        self.layer2 = stage(PreActBlock, 64, 128, num_blocks[1], stride=2)
        self.layer3 = stage(PreActBlock, 128, 256, num_blocks[2], stride=2)
        self.layer4 = stage(PreActBlock, 256, 512, num_blocks[3], stride=2)
        self.bn = nn.BatchNorm2d(512) if final_bn else None
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.bn is not None:
            out = F.relu(self.bn(out))
        return self.linear(global_avg_pool(out))
