"""The networks of the papers written down a second time: their keys, and their forward passes.

Nothing here comes from `fastard.models`; the tests hold the two against each other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
MOBILENET_BLOCKS = [
    # in, out, expansion, stride
    (32, 16, 1, 1),
    *[(16, 24, 6, 1), (24, 24, 6, 1)],
    *[(24, 32, 6, 2), (32, 32, 6, 1), (32, 32, 6, 1)],
    *[(32, 64, 6, 2), (64, 64, 6, 1), (64, 64, 6, 1), (64, 64, 6, 1)],
    *[(64, 96, 6, 1), (96, 96, 6, 1), (96, 96, 6, 1)],
    *[(96, 160, 6, 2), (160, 160, 6, 1), (160, 160, 6, 1)],
    (160, 320, 6, 1),
]


class Shapes(dict[str, tuple[int, ...]]):
    """Key -> shape, in the order of a state_dict."""

    def conv(self, key: str, out: int, inp: int, k: int) -> None:
        self[f"{key}.weight"] = (out, inp, k, k)

    def bn(self, key: str, planes: int) -> None:
        self.update({f"{key}.{name}": (planes,) for name in BN[:4]})
        self[f"{key}.{BN[4]}"] = ()

    def linear(self, key: str, out: int, inp: int) -> None:
        self.update({f"{key}.weight": (out, inp), f"{key}.bias": (out,)})


def resnet_shapes(num_blocks: tuple[int, ...], num_classes: int = 10) -> Shapes:
    s = Shapes()
    s.conv("conv1", 64, 3, 3)
    s.bn("bn1", 64)
    inp = 64
    for stage, (planes, count) in enumerate(zip((64, 128, 256, 512), num_blocks, strict=True), 1):
        for i in range(count):
            key = f"layer{stage}.{i}"
            s.conv(f"{key}.conv1", planes, inp, 3)
            s.bn(f"{key}.bn1", planes)
            s.conv(f"{key}.conv2", planes, planes, 3)
            s.bn(f"{key}.bn2", planes)
            if inp != planes:
                s.conv(f"{key}.shortcut.0", planes, inp, 1)
                s.bn(f"{key}.shortcut.1", planes)
            inp = planes
    s.linear("linear", num_classes, 512)
    return s


def preactresnet_shapes(num_blocks: tuple[int, ...], final_bn: bool = True) -> Shapes:
    s = Shapes()
    s.conv("conv1", 64, 3, 3)
    inp = 64
    for stage, (planes, count) in enumerate(zip((64, 128, 256, 512), num_blocks, strict=True), 1):
        for i in range(count):
            key = f"layer{stage}.{i}"
            s.bn(f"{key}.bn1", inp)
            s.conv(f"{key}.conv1", planes, inp, 3)
            s.bn(f"{key}.bn2", planes)
            s.conv(f"{key}.conv2", planes, planes, 3)
            if inp != planes:
                s.conv(f"{key}.shortcut.0", planes, inp, 1)
            inp = planes
    if final_bn:
        s.bn("bn", 512)
    s.linear("linear", 10, 512)
    return s


def mobilenetv2_shapes() -> Shapes:
    s = Shapes()
    s.conv("conv1", 32, 3, 3)
    s.bn("bn1", 32)
    for i, (inp, out, expansion, stride) in enumerate(MOBILENET_BLOCKS):
        wide = inp * expansion
        s.conv(f"layers.{i}.conv1", wide, inp, 1)
        s.bn(f"layers.{i}.bn1", wide)
        s.conv(f"layers.{i}.conv2", wide, 1, 3)
        s.bn(f"layers.{i}.bn2", wide)
        s.conv(f"layers.{i}.conv3", out, wide, 1)
        s.bn(f"layers.{i}.bn3", out)
        if stride == 1 and inp != out:
            s.conv(f"layers.{i}.shortcut.0", out, inp, 1)
            s.bn(f"layers.{i}.shortcut.1", out)
    s.conv("conv2", 1280, 320, 1)
    s.bn("bn2", 1280)
    s.linear("linear", 10, 1280)
    return s


def wideresnet_shapes(depth: int, k: int, sub_block: bool = True) -> Shapes:
    s = Shapes()
    s.conv("conv1", 16, 3, 3)
    for block, inp, planes in (
        ("block1", 16, 16 * k),
        ("sub_block1", 16, 16 * k),
        ("block2", 16 * k, 32 * k),
        ("block3", 32 * k, 64 * k),
    ):
        if block == "sub_block1" and not sub_block:
            continue
        for i in range((depth - 4) // 6):
            key = f"{block}.layer.{i}"
            s.bn(f"{key}.bn1", planes if i else inp)
            s.conv(f"{key}.conv1", planes, planes if i else inp, 3)
            s.bn(f"{key}.bn2", planes)
            s.conv(f"{key}.conv2", planes, planes, 3)
            if i == 0 and inp != planes:
                s.conv(f"{key}.convShortcut", planes, inp, 1)
    s.bn("bn1", 64 * k)
    s.linear("fc", 10, 64 * k)
    return s


def bn(s: State, key: str, x: Tensor) -> Tensor:
    mean, var = s[f"{key}.running_mean"], s[f"{key}.running_var"]
    return F.batch_norm(x, mean, var, s[f"{key}.weight"], s[f"{key}.bias"], training=False)


def conv(s: State, key: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    weight = s[f"{key}.weight"]
    padding = weight.shape[-1] // 2
    return F.conv2d(x, weight, stride=stride, padding=padding, groups=groups)


def head(s: State, key: str, x: Tensor, pool: int) -> Tensor:
    x = F.avg_pool2d(x, pool).view(len(x), -1)
    return F.linear(x, s[f"{key}.weight"], s[f"{key}.bias"])


def resnet(s: State, num_blocks: tuple[int, ...], x: Tensor) -> Tensor:
    x = F.relu(bn(s, "bn1", conv(s, "conv1", x)))
    for stage, count in enumerate(num_blocks, 1):
        for i in range(count):
            key, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = F.relu(bn(s, f"{key}.bn1", conv(s, f"{key}.conv1", x, stride)))
            y = bn(s, f"{key}.bn2", conv(s, f"{key}.conv2", y))
            if f"{key}.shortcut.0.weight" in s:
                x = bn(s, f"{key}.shortcut.1", conv(s, f"{key}.shortcut.0", x, stride))
            x = F.relu(y + x)
    return head(s, "linear", x, 4)


def preactresnet(s: State, num_blocks: tuple[int, ...], x: Tensor) -> Tensor:
    x = conv(s, "conv1", x)
    for stage, count in enumerate(num_blocks, 1):
        for i in range(count):
            key, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            active = F.relu(bn(s, f"{key}.bn1", x))
            if f"{key}.shortcut.0.weight" in s:
                x = conv(s, f"{key}.shortcut.0", active, stride)
            y = F.relu(bn(s, f"{key}.bn2", conv(s, f"{key}.conv1", active, stride)))
            x = conv(s, f"{key}.conv2", y) + x
    if "bn.weight" in s:
        x = F.relu(bn(s, "bn", x))
    return head(s, "linear", x, 4)


def mobilenetv2(s: State, x: Tensor) -> Tensor:
    x = F.relu(bn(s, "bn1", conv(s, "conv1", x)))
    for i, (inp, out, expansion, stride) in enumerate(MOBILENET_BLOCKS):
        key = f"layers.{i}"
        y = F.relu(bn(s, f"{key}.bn1", conv(s, f"{key}.conv1", x)))
        y = F.relu(bn(s, f"{key}.bn2", conv(s, f"{key}.conv2", y, stride, inp * expansion)))
        y = bn(s, f"{key}.bn3", conv(s, f"{key}.conv3", y))
        if stride == 1 and inp != out:
            x = bn(s, f"{key}.shortcut.1", conv(s, f"{key}.shortcut.0", x))
        x = y + x if stride == 1 else y
    x = F.relu(bn(s, "bn2", conv(s, "conv2", x)))
    return head(s, "linear", x, 4)


def wideresnet(s: State, depth: int, x: Tensor) -> Tensor:
    x = conv(s, "conv1", x)
    for block, first_stride in (("block1", 1), ("block2", 2), ("block3", 2)):
        for i in range((depth - 4) // 6):
            key, stride = f"{block}.layer.{i}", 1 if i else first_stride
            active = F.relu(bn(s, f"{key}.bn1", x))
            if f"{key}.convShortcut.weight" in s:
                x = conv(s, f"{key}.convShortcut", active, stride)
            y = F.relu(bn(s, f"{key}.bn2", conv(s, f"{key}.conv1", active, stride)))
            x = x + conv(s, f"{key}.conv2", y)
    x = F.relu(bn(s, "bn1", x))
    return head(s, "fc", x, 8)


def bring_to_life(model: torch.nn.Module, x: Tensor) -> None:
    """Give every batch norm the statistics of x and a random affine map.

    A network with default statistics shrinks its signal until all images get the same logits, and
    then hardly any mistake in its forward pass would show.
    """
    generator = torch.Generator().manual_seed(0)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator) + 0.5)
            norm.bias.copy_(torch.randn(norm.bias.shape, generator=generator) * 0.2)
            norm.momentum = 1.0
        model.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()
