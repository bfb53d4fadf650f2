"""The networks of the benchmarks, with the statistics of trained ones: default BN makes denormals,
which processors compute slowly."""

from __future__ import annotations

import torch
from torch import nn

from fastard import models

from .rivals import Absent, imported

IMAGENET = {"resnet50": 224, "vit_small_patch16_224": 224}


def build(name: str, classes: int = 10, seed: int = 0) -> nn.Module:
    """A network by name, on the CPU in train mode; raises Absent where timm is missing."""
    torch.manual_seed(seed)
    if name == "resnet50":
        from torchvision.models import resnet50

        net: nn.Module = resnet50(weights=None, num_classes=classes)
    elif name.startswith("vit_"):
        net = imported("timm", "timm").create_model(name, pretrained=False, num_classes=classes)
    else:
        net = models.build(name, num_classes=classes)
    return realistic(net).train()


def realistic(net: nn.Module) -> nn.Module:
    """The network with BN statistics and weights as training leaves them, in place."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return net


def image_shape(name: str, batch: int) -> tuple[int, int, int, int]:
    if name.startswith("small_cnn"):
        return batch, 1, 28, 28
    side = IMAGENET.get(name, 32)
    return batch, 3, side, side


__all__ = ["Absent", "build", "image_shape", "realistic"]
