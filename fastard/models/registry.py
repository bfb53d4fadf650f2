"""Networks by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fastard.kinds import unknown
from fastard.models import deepmind_wrn
from fastard.models import public_teachers as teachers
from fastard.models.mobilenetv2 import MobileNetV2
from fastard.models.preactresnet import PreActResNet
from fastard.models.resnet import ResNet
from fastard.models.small_cnn import SmallCNN
from fastard.models.wideresnet import WideResNet


@dataclass(frozen=True)
class Architecture:
    """What a name stands for.

    `only_size` is the one image size that fits (None: any); `takes_size` says whether the
    constructor is told; `mean` and `std` are the normaliser that the published weights expect,
    `normalisers` those for another number of classes.
    """

    make: Callable[..., nn.Module]
    fixed: dict[str, Any] = field(default_factory=dict)
    in_channels: int = 3
    image_size: int = 32
    only_size: int | None = None
    takes_size: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    normalisers: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = field(
        default_factory=dict
    )

    def normaliser(
        self, num_classes: int
    ) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """Mean and std for published weights of so many classes."""
        return self.normalisers.get(num_classes, (self.mean, self.std))


ARCHITECTURES = {
    "resnet18": Architecture(ResNet, {"num_blocks": (2, 2, 2, 2)}),
    "resnet34": Architecture(ResNet, {"num_blocks": (3, 4, 6, 3)}),
    "mobilenetv2": Architecture(MobileNetV2),
    "preactresnet18": Architecture(PreActResNet, {"num_blocks": (2, 2, 2, 2)}),
    "small_cnn": Architecture(SmallCNN, in_channels=1, image_size=28, takes_size=True),
    "resnet56": Architecture(
        teachers.ResNet56, mean=teachers.IMAGENET_MEAN, std=teachers.IMAGENET_STD
    ),
    "resnet4b": Architecture(
        teachers.ResNet4b, only_size=32, mean=teachers.CIFAR10_MEAN, std=teachers.CIFAR10_STD
    ),
    "cnn_a": Architecture(
        teachers.cnn_a, only_size=32, mean=teachers.CIFAR10_MEAN, std=teachers.CIFAR10_PER_IMAGE_STD
    ),
}

# The members of the open families that papers use; `find` accepts every other as well.
COMMON = (
    *("wrn-16-4", "wrn-28-10", "wrn-34-10", "wrn-34-20", "wrn-70-16", "small_cnn-16"),
    *("deepmind-wrn-28-10", "deepmind-wrn-34-20", "deepmind-wrn-70-16"),
)
FAMILIES = (
    "any wrn-D-K and deepmind-wrn-D-K with D = 6n + 4",
    "small_cnn-W of stem width W",
)


def names() -> list[str]:
    """Return names that `build` knows; Wide ResNets of other depths and widths work as well."""
    return sorted([*ARCHITECTURES, *COMMON])


def find(name: str) -> Architecture:
    """Return the architecture called `name`.

    Raises:
        ValueError: no architecture has this name; the nearest and all known names are listed.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if match := re.fullmatch(r"wrn-(\d+)-(\d+)", name):
        depth, widen_factor = map(int, match.groups())
        return Architecture(WideResNet, {"depth": depth, "widen_factor": widen_factor})
    if match := re.fullmatch(r"small_cnn-(\d+)", name):
        fixed = {"width": int(match.group(1))}
        return Architecture(SmallCNN, fixed, in_channels=1, image_size=28, takes_size=True)
    if match := re.fullmatch(r"deepmind-wrn-(\d+)-(\d+)", name):
        depth, widen_factor = map(int, match.groups())
        return Architecture(
            deepmind_wrn.DeepMindWideResNet,
            {"depth": depth, "widen_factor": widen_factor},
            mean=teachers.CIFAR10_MEAN,
            std=teachers.CIFAR10_STD,
            normalisers={100: (deepmind_wrn.CIFAR100_MEAN, deepmind_wrn.CIFAR100_STD)},
        )
    raise unknown("model", name, [*ARCHITECTURES, *COMMON, *FAMILIES])


def build(
    name: str,
    num_classes: int = 10,
    *,
    in_channels: int | None = None,
    image_size: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build the network called `name` with fresh weights, initialised as its paper's code does.

    It takes images [N, in_channels, image_size, image_size] in [0, 1] and returns logits
    [N, num_classes]. `in_channels` is 3 where not given (small_cnn: 1). Only small_cnn depends on
    `image_size` (default 28); the others take any size their strides allow, resnet4b and cnn_a 32.
    `kwargs` go to the network: `width` (small_cnn), `drop_rate` and `sub_block` (wrn), `activation`
    (deepmind-wrn), `final_bn` (preactresnet18).

    Raises:
        ValueError: the name is unknown, or a size or count does not fit the network.
        TypeError: the network has no such keyword.
    """
    architecture = find(name)
    in_channels = architecture.in_channels if in_channels is None else in_channels
    image_size = architecture.image_size if image_size is None else image_size
    counts = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    for argument, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{argument} of {name} is {count!r} but must be a positive integer")
    if architecture.only_size not in (None, image_size):
        raise ValueError(
            f"image_size of {name} is {image_size} but must be {architecture.only_size}"
        )
    if architecture.takes_size:
        kwargs["image_size"] = image_size
    return architecture.make(
        num_classes=num_classes, in_channels=in_channels, **architecture.fixed, **kwargs
    )
