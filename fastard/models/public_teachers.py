"""Architectures of small public CIFAR-10 checkpoints that serve as teachers.

`ResNet56` is akamaster/pytorch_resnet_cifar10's; `ResNet4b` and `cnn_a` are those of
Verified-Intelligence/alpha-beta-CROWN. The registry pairs each with the normaliser it needs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastard.models.layers import conv3x3, global_avg_pool, stage

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
# The mean of the standard deviations of single images, which much old code divides by.
CIFAR10_PER_IMAGE_STD = (0.2023, 0.1994, 0.2010)


class PadShortcut(nn.Module):
    """Every second pixel, zero planes around the channels: option A of the ResNet paper."""

    def __init__(self, in_planes: int, planes: int) -> None:
        super().__init__()
        self.pad = (planes - in_planes) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class PadBlock(nn.Module):
    """Basic residual block whose shortcut has no parameters."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_planes, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential() if stride == 1 else PadShortcut(in_planes, planes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet56(nn.Module):
    """The CIFAR ResNet-56 of He et al. 2015: three stages of nine blocks, widths 16, 32, 64.

    Input [N, in_channels, H, W], output logits [N, num_classes].
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(PadBlock, 16, 16, 9, stride=1)
        self.layer2 = stage(PadBlock, 16, 32, 9, stride=2)
        self.layer3 = stage(PadBlock, 32, 64, 9, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(global_avg_pool(out))


class BiasBlock(nn.Module):
    """Basic residual block of biased convolutions, without batch norm."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(in_planes, planes, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.conv1(x)))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet4b(nn.Module):
    """alpha-beta-CROWN's resnet4b: four residual blocks and two linear layers, no batch norm.

    Input [N, in_channels, 32, 32], output logits [N, num_classes].
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, stride=2, padding=1)
        self.layer1 = stage(BiasBlock, 16, 32, 2, stride=2)
        self.layer2 = stage(BiasBlock, 32, 32, 2, stride=2)
        self.linear1 = nn.Linear(32 * 4 * 4, 100)
        self.linear2 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer2(self.layer1(F.relu(self.conv1(x))))
        return self.linear2(F.relu(self.linear1(out.flatten(1))))


def cnn_a(num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """alpha-beta-CROWN's cifar_cnn_a: two convolutions, two linear layers; 32x32 input."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 100),
        nn.ReLU(),
        nn.Linear(100, num_classes),
    )
