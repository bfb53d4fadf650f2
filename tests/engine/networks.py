"""Classifiers that the engine must take: name -> (network, images)."""

from __future__ import annotations

import functools

import torch
import torchvision
from torch import Tensor, nn

from fastard import models
from tests.engine.oracle import lived_in

OURS = ("resnet18", "mobilenetv2", "preactresnet18", "wrn-16-4", "small_cnn")
# The smallest image side that leaves every stage something to see.
TORCHVISION = {
    "resnet18": 64, "mobilenet_v2": 64, "efficientnet_b0": 64, "densenet121": 64,
    "convnext_tiny": 32, "vit_b_16": 32, "mobilenet_v3_small": 64, "shufflenet_v2_x1_0": 64,
    "regnet_y_400mf": 64, "swin_t": 32,
}  # fmt: skip
TIMM = {
    "resnet10t": 64, "mobilenetv2_050": 64, "efficientnet_lite0": 64, "convnext_atto": 64,
    "vit_tiny_patch16_224": 32,
}  # fmt: skip


class Tiny(nn.Module):
    """Every kind of layer that the engine knows, and some that it leaves to autograd, with too few
    activations for rounding to meet a kink."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        w, conv = width, functools.partial(nn.Conv2d, bias=False)
        self.stem = nn.Sequential(nn.Conv2d(3, w, 3, padding=1), nn.BatchNorm2d(w), nn.ReLU(True))
        self.expand = nn.Sequential(conv(w, 2 * w, 1), nn.BatchNorm2d(2 * w), nn.ReLU6(True))
        self.depth = conv(2 * w, 2 * w, 3, 2, 1, groups=2 * w)
        self.depth_norm = nn.BatchNorm2d(2 * w)
        self.group = nn.GroupNorm(2, 2 * w)
        self.before, self.point = nn.BatchNorm2d(2 * w), conv(2 * w, 2 * w, 1)
        self.after, self.act = nn.BatchNorm2d(2 * w), nn.SiLU()
        self.squeeze, self.excite = nn.Conv2d(2 * w, 4, 1), nn.Conv2d(4, 2 * w, 1)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(4 * w, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(self.stem(x))
        x = nn.functional.relu6(self.depth_norm(self.depth(x)))
        x = x + nn.functional.relu(self.point(self.before(self.group(x))))
        s = self.excite(nn.functional.silu(self.squeeze(x.mean((2, 3), keepdim=True))))
        y = self.act(self.after(x * s.sigmoid()))
        return self.fc(self.drop(torch.cat([x, y], 1).mean((2, 3))))


def tiny() -> tuple[nn.Module, Tensor, Tensor]:
    """Eight images of 12 x 12."""
    return network(Tiny, 12), *images(12, count=8)


def images(side: int, channels: int = 3, count: int = 4) -> tuple[Tensor, Tensor]:
    """Images and a gradient in the logits."""
    g = torch.Generator().manual_seed(1)
    x = torch.rand(count, channels, side, side, generator=g)
    return x, torch.randn(count, 10, generator=g)


def network(make, side: int, channels: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lived_in(make(), images(side, channels, 8)[0])


def ours(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    side, channels = (28, 1) if name == "small_cnn" else (32, 3)
    make = functools.partial(models.build, name)
    return network(make, side, channels), *images(side, channels)


def theirs(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    side = TORCHVISION[name]
    sized = {"image_size": side} if name.startswith("vit") else {}
    make = functools.partial(getattr(torchvision.models, name), num_classes=10, **sized)
    return network(make, side), *images(side)


def timms(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    import timm

    sized = {"img_size": TIMM[name]} if name.startswith("vit") else {}
    make = functools.partial(timm.create_model, name, num_classes=10, **sized)
    return network(make, TIMM[name]), *images(TIMM[name])
