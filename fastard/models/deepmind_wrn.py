"""Wide ResNet as google-deepmind/deepmind-research (adversarial_robustness/pytorch) defines it.

RSLAD's teacher on CIFAR-100 is its WRN-70-16 of Gowal et al. 2020, without extra data
(`cifar100_linf_wrn70-16_without.pt`), and wzekai99/DM-Improves-AT trains the same networks. Their
names beside those of TRADES' Wide ResNet (`wideresnet.py`), block b of stage s (both from 0):

    init_conv                           conv1
    layer.s.block.b.batchnorm_0         block{s+1}.layer.b.bn1
    layer.s.block.b.conv_0              block{s+1}.layer.b.conv1
    layer.s.block.b.batchnorm_1         block{s+1}.layer.b.bn2
    layer.s.block.b.conv_1              block{s+1}.layer.b.conv2
    layer.s.block.b.shortcut            block{s+1}.layer.b.convShortcut
    batchnorm                           bn1
    logits                              fc

Renaming alone would not do: these networks pad a stride-2 convolution on its far sides only, as
"SAME" does, and their activation is SiLU ("Swish") in the released weights.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastard.models.layers import conv1x1, conv3x3, global_avg_pool

CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
ACTIVATIONS: dict[str, type[nn.Module]] = {"swish": nn.SiLU, "relu": nn.ReLU}


class Block(nn.Module):
    """Pre-activation block; where the width changes, the shortcut follows the first activation."""

    def __init__(
        self, in_planes: int, planes: int, stride: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.batchnorm_0 = nn.BatchNorm2d(in_planes)
        self.relu_0 = activation()
        self.conv_0 = nn.Conv2d(in_planes, planes, 3, stride=stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(planes)
        self.relu_1 = activation()
        self.conv_1 = conv3x3(planes, planes)
        self.shortcut = None if in_planes == planes else conv1x1(in_planes, planes, stride)
        self.padding = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu_0(self.batchnorm_0(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv_0(F.pad(out, self.padding))
        return shortcut + self.conv_1(self.relu_1(self.batchnorm_1(out)))


class BlockGroup(nn.Module):
    """A stage of blocks under the name `block`, the first of which may stride."""

    def __init__(
        self, num_blocks: int, in_planes: int, planes: int, stride: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        first = Block(in_planes, planes, stride, activation)
        rest = (Block(planes, planes, 1, activation) for _ in range(num_blocks - 1))
        self.block = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class DeepMindWideResNet(nn.Module):
    """Wide ResNet of depth 6n + 4 with stages of width 16k, 32k, 64k.

    Input [N, in_channels, H, W] normalised (the published code does it inside), output logits
    [N, num_classes]. `activation` is "swish" or "relu".

    Raises:
        ValueError: the depth, the width or the activation cannot be.
    """

    def __init__(
        self,
        depth: int = 70,
        widen_factor: int = 16,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        activation: str = "swish",
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 != 0:
            raise ValueError(f"depth of a Wide ResNet is {depth} but must be 6n + 4 with n >= 1")
        if widen_factor < 1:
            raise ValueError(f"widen_factor of a Wide ResNet is {widen_factor} but must be >= 1")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation of a Wide ResNet is {activation!r} but must be 'swish' or 'relu'"
            )
        chosen = ACTIVATIONS[activation]
        n, widths = (depth - 4) // 6, [16, *(16 * widen_factor * 2**i for i in range(3))]
        self.init_conv = conv3x3(in_channels, 16)
        self.layer = nn.Sequential(
            *(BlockGroup(n, widths[i], widths[i + 1], min(i + 1, 2), chosen) for i in range(3))
        )
        self.batchnorm = nn.BatchNorm2d(widths[3])
        self.relu = chosen()
        self.logits = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(self.init_conv(x))
        return self.logits(global_avg_pool(self.relu(self.batchnorm(out))))
