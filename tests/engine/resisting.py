"""Models that resist tracing, folding or both."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.engine.networks import Tiny


class Net(nn.Module):
    """Tiny, in parts that subclasses rearrange."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Tiny()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
        self.norm, self.other, self.fc = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.Linear(6, 10)

    def head(self, h):
        return self.fc(F.relu(h).mean((2, 3)))


class DataDependent(Net):
    def forward(self, x):
        return self.net(x) if x.mean() > 0.3 else self.net(x) * 2


class Gate(nn.Module):
    def forward(self, h):
        return h * 2 if h.mean() > 10 else h * 0.5


class DataDependentPart(Net):
    def __init__(self):
        super().__init__()
        self.gate = Gate()

    def forward(self, x):
        return self.head(self.second(self.gate(self.norm(self.first(x)))))


class LoopOverBatch(Net):
    def forward(self, x):
        return torch.cat([self.net(one[None]) for one in x])


class Straight(torch.autograd.Function):
    """Rounds, with a gradient that passes as if it did not."""

    @staticmethod
    def forward(ctx, h):
        return (h * 4).round() / 4

    @staticmethod
    def backward(ctx, grad):
        return grad * 0.7


class StraightThrough(Net):
    def forward(self, x):
        return self.net(Straight.apply(x * 1.01))


class RoundingPart(nn.Module):
    def forward(self, h):
        return Straight.apply(h)


class StraightThroughPart(Net):
    def __init__(self):
        super().__init__()
        self.round = RoundingPart()

    def forward(self, x):
        return self.head(self.round(self.norm(self.first(x))))


class Detached(Net):
    """x minus its rounding error, detached: straight-through by hand."""

    def forward(self, x):
        return self.net(x + ((x * 4).round() / 4 - x).detach())


class NoGrad(Net):
    def forward(self, x):
        with torch.no_grad():
            weight = x.mean((2, 3), keepdim=True)
        return self.net(x * weight)


class GradOff(Net):
    def forward(self, x):
        with torch.inference_mode():
            level = float(x.mean())
        return self.net(x * level)


class WritesInput(Net):
    def forward(self, x):
        x.add_(0.1)
        x *= 1.1
        return self.net(x)


class WritesWhatIsReadAgain(Net):
    def forward(self, x):
        h = self.first(x)
        y = h.add_(0.5)
        return self.head(self.second(h)) + self.head(y)


class InPlaceRelu(Net):
    """The shortcut reads what the activation has overwritten."""

    def forward(self, x):
        h = self.norm(self.first(x))
        y = F.relu(h, inplace=True)
        return self.head(y * 0.1 + h)


class Assigns(Net):
    def forward(self, x):
        h = self.first(x).clone()
        h[:, 0] = h[:, 1] * 2
        return self.head(h)


class Alias(Net):
    """Writes into its second name for a value; `alias` makes the name."""

    def __init__(self, alias):
        super().__init__()
        self.alias, self.drop, self.identity = alias, nn.Dropout(), nn.Identity()

    def forward(self, x):
        h = self.first(x)
        y = self.alias(self, h)
        y.mul_(1.001)
        return self.head(self.second(h))


ALIASES = {
    "dropout": lambda m, h: m.drop(h), "identity": lambda m, h: m.identity(h),
    "F.dropout": lambda m, h: F.dropout(h, 0.5, False), "float": lambda m, h: h.float(),
    "to": lambda m, h: h.to(h.dtype), "movedim": lambda m, h: h.movedim(1, 2),
    "mT": lambda m, h: h.mT, "expand_as": lambda m, h: h.expand_as(h), "data": lambda m, h: h.data,
    "slice": lambda m, h: h[:, 1:], "split": lambda m, h: h.tensor_split(2)[0],
    "unflatten": lambda m, h: h.unflatten(1, (2, 3)), "narrow": lambda m, h: h.narrow(1, 0, 2),
}  # fmt: skip


class SharedConv(Net):
    def forward(self, x):
        return self.head(self.second(F.relu(self.second(self.norm(self.first(x))))))


class SharedNorm(Net):
    def forward(self, x):
        return self.head(self.norm(self.second(F.relu(self.norm(self.first(x))))))


class SharedBranches(Net):
    """One value read by three, one of them through a folded norm."""

    def forward(self, x):
        h = self.first(x)
        p = self.second(self.norm(h))
        return self.head(p) + self.head(self.other(h)) + self.head(h)


class Twice(Net):
    def forward(self, x):
        h = self.norm(self.first(x))
        return self.head(h + h) + self.head(torch.add(h, h, alpha=3))


class Random(Net):
    def forward(self, x):
        return self.net(F.dropout(x, 0.5, training=True))


class Noisy(Net):
    def forward(self, x):
        return self.net(x * (1 + 0.01 * torch.rand(1)))


class Counting(Net):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) * (1 + 1e-3 * self.calls)


class CountingBuffer(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.net(x) * (1 + 1e-3 * self.calls)


class CountingPart(Net):
    """Counts in a part that cannot be traced."""

    def __init__(self):
        super().__init__()
        self.part = Counter()

    def forward(self, x):
        return self.net(self.part(x))

    @property
    def calls(self):
        return self.part.calls + self.part.level


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.level = 0

    def forward(self, x):
        self.calls += 1
        self.level += 1
        return x * (1 + 1e-3 * float(self.calls) + 1e-3 * self.level)


class Optional(Net):
    def forward(self, x, scale=None, features=False):
        if scale is not None:
            x = x * 1.5
        h = self.first(x)
        return h if features else self.head(h)


class Constant(Net):
    def forward(self, x):
        return self.net(x * torch.tensor([1.0, 2.0, 0.5]).view(-1, 1, 1) + torch.eye(12))


class Shapes(Net):
    """Sizes of its input in its forward."""

    def forward(self, x):
        b, c = x.shape[0], x.size(1)
        assert x.dim() == 4
        return self.net(x.view(b, c, -1).view(b, c, 12, 12) / c)


class Positions(Net):
    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 3, 12, 12) * 0.1)
        self.gain = nn.Parameter(torch.rand(1, 3, 1, 1))

    def forward(self, x):
        return self.net((self.positions + x) * self.gain)
