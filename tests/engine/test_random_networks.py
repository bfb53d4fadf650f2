"""A hundred networks drawn at random: program and autograd agree, fresh and with new weights."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastard.engine import Program
from fastard.engine.precision import cpu_bf16
from tests.engine.oracle import answers, eager, error, exact, lived_in, reason, typical

SEEDS = 100
OPTIONS = ({}, {}, {"fold": False}, {"layout": "contiguous"})
SIDE, BATCH, CLASSES = 12, 6, 7
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, lambda: nn.GELU(approximate="tanh"),
    lambda: nn.ReLU(inplace=True), lambda: nn.LeakyReLU(0.2), nn.Hardsigmoid, nn.Tanh, nn.Identity,
)  # fmt: skip
FUNCTIONS = (F.relu, torch.relu, F.silu, F.gelu, F.hardswish, F.relu6, lambda v: v.relu(),
             lambda v: v.clamp(min=0), torch.sigmoid)  # fmt: skip


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1) if draw.random() < 0.5 else None
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.gate = draw.choice((nn.Sigmoid(), nn.Hardsigmoid()))

    def forward(self, x: Tensor) -> Tensor:
        s = x.mean((2, 3), keepdim=True) if self.pool is None else self.pool(x)
        return x * self.gate(self.up(F.relu(self.down(s))))


class Branch(nn.Module):
    """x joined with what a stack of layers makes of it."""

    def __init__(self, layers: nn.Module, how: str, act: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.layers, self.how, self.act, self.shortcut = layers, how, act, shortcut

    def forward(self, x: Tensor) -> Tensor:
        y, x = self.layers(x), self.shortcut(x)
        if self.how == "concat":
            return self.act(torch.cat([x, y], dim=1))
        if self.how == "iadd":
            y += x
            return self.act(y)
        return self.act(x + y if self.how == "add" else torch.add(y, x))


class Functional(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Draw:
    """Layers drawn from a seed; `channels` and `side` follow them."""

    def __init__(self, seed: int) -> None:
        self.r, self.channels, self.side = random.Random(seed), 3, SIDE

    def act(self) -> nn.Module:
        if self.r.random() < 0.3:
            return Functional(self.r.choice(FUNCTIONS))
        return self.r.choice(ACTIVATIONS)()

    def norm(self) -> nn.Module:
        kinds = [nn.BatchNorm2d(self.channels)] * 4
        kinds += [nn.BatchNorm2d(self.channels, affine=False, eps=1e-3), nn.Identity(),
                  nn.GroupNorm(1, self.channels)]  # fmt: skip
        return self.r.choice(kinds)

    def conv(self, keep: bool = False, depthwise: bool | None = None) -> nn.Module:
        r, inner = self.r, self.channels
        if depthwise is None:
            depthwise = r.random() < 0.3
        outer = inner if keep else r.choice((4, 6, 8, 16, 20))
        groups = 1
        if depthwise:
            groups, outer = inner, inner if keep else inner * r.choice((1, 1, 2))
        elif inner % 2 == 0 and r.random() < 0.2:
            groups, outer = 2, outer // 2 * 2
        kernel = r.choice((1, 3, 3, 5) if not depthwise else (3, 3, 5, 7))
        dilation = 2 if kernel == 3 and self.side >= 6 and r.random() < 0.15 else 1
        same = dilation * (kernel - 1) // 2
        padding = same if keep else r.choice([p for p in (0, 1, same, kernel) if self.left(
            kernel, p, dilation, 1) >= 2])  # fmt: skip
        stride = 1 if keep or self.left(kernel, padding, dilation, 2) < 2 else r.choice((1, 1, 2))
        self.channels = outer
        self.side = self.left(kernel, padding, dilation, stride)
        mode = "reflect" if padding and padding < 3 and r.random() < 0.05 else "zeros"
        return nn.Conv2d(inner, outer, kernel, stride, padding, dilation, groups,
                         bias=r.random() < 0.5, padding_mode=mode)  # fmt: skip

    def left(self, kernel: int, padding: int, dilation: int, stride: int) -> int:
        return (self.side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1

    def unit(self, keep: bool = False) -> list[nn.Module]:
        """Convolution, normalisation and activation in one of their usual orders."""
        order = self.r.choice(("cna", "cna", "cn", "nac", "ca", "nc", "can"))
        makers = {"c": lambda: self.conv(keep), "n": self.norm, "a": self.act}
        return [makers[letter]() for letter in order]

    def block(self) -> nn.Module:
        kind = self.r.choice(("unit", "unit", "branch", "branch", "squeeze", "pool", "drop"))
        if kind == "branch":
            how = self.r.choice(("add", "iadd", "torch.add", "concat"))
            inside = [m for _ in range(self.r.choice((1, 2))) for m in self.unit(keep=True)]
            if how == "iadd":
                inside.append(nn.BatchNorm2d(self.channels))
            before = self.channels
            shortcut = nn.Conv2d(before, before, 1) if self.r.random() < 0.3 else nn.Identity()
            if how == "concat":
                self.channels = 2 * before
            return Branch(nn.Sequential(*inside), how, self.act(), shortcut)
        if kind == "squeeze":
            return Squeeze(self.channels, self.r)
        if kind == "pool" and self.side >= 4:
            self.side //= 2
            return self.r.choice(
                (nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(self.side))
            )
        if kind == "drop":
            return self.r.choice(
                (nn.Dropout(0.3), nn.Dropout2d(0.3), nn.Dropout(0.2, inplace=True))
            )
        return nn.Sequential(*self.unit())

    def network(self) -> nn.Sequential:
        body = [self.block() for _ in range(self.r.randint(2, 6))]
        if self.r.random() < 0.7:
            head: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            width = self.channels
        else:
            head, width = [nn.Flatten()], self.channels * self.side**2
        if self.r.random() < 0.4:
            head += [nn.Linear(width, 16), nn.BatchNorm1d(16), self.act(), nn.Dropout(0.5)]
            width = 16
        return nn.Sequential(*body, *head, nn.Linear(width, CLASSES))


def images(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(BATCH, 3, SIDE, SIDE, generator=g), torch.randn(BATCH, CLASSES, generator=g)


def close(got: Tensor, beside: list[Tensor], truth: Tensor) -> bool:
    """At most four times eager's error in the better half of the samples, the other half may have
    met a kink; and none beyond what a kink does."""
    allowed = 4 * max(error(e, truth).median() for e in beside) + 1e-6
    return bool((error(got, truth) <= allowed).sum() >= BATCH // 2) and bool(
        (error(got, truth) <= allowed + 0.2).all()
    )


@pytest.mark.parametrize("seed", range(SEEDS))
def test_against_autograd(seed):
    torch.manual_seed(seed)
    model = Draw(seed).network().eval()
    x, d = images(seed)
    options = random.Random(seed).choice(OPTIONS)
    programs = [Program(model), Program(model, **options)]
    # At the initial statistics, where a wrong fold may hide, and then as if trained.
    for stage in ("fresh", "trained"):
        if stage == "trained":
            lived_in(model, torch.cat([x, x.flip(0)]), seed)
        truth, beside = exact(model, x, d), eager(model, x, d)
        for program in programs:
            got = answers(program, x, d)
            which = f"seed {seed}, {stage}, {options}: {reason(program)}\n{model}\n"
            assert program.made.plan is not None, which
            for k, name in enumerate(("logits", "gradient")):
                errors = error(got[k], truth[k]), *(error(e[k], truth[k]) for e in beside)
                assert close(got[k], [e[k] for e in beside], truth[k]), f"{which}{name} {errors}"


@pytest.mark.skipif(not cpu_bf16()[0], reason=cpu_bf16()[1])
@pytest.mark.parametrize("seed", range(0, SEEDS, 4))
def test_bf16_beside_autocast(seed):
    torch.manual_seed(seed)
    model, (x, d) = Draw(seed).network().eval(), images(seed)
    lived_in(model, torch.cat([x, x.flip(0)]), seed)
    truth, program = exact(model, x, d), Program(model, "bf16")
    got, autocast = answers(program, x, d), answers(Program(model, "bf16", engine=False), x, d)
    assert program.made.plan is not None, f"seed {seed}: {reason(program)}\n{model}"
    for k, name in enumerate(("logits", "gradient")):
        # The better samples: the others meet kinks and ties, which rounding to bf16 moves.
        mine, theirs = (typical(v[k], truth[k]) for v in (got, autocast))
        assert mine <= 4 * theirs + 0.03, f"seed {seed}, {name}: {mine} beside {theirs}\n{model}"
