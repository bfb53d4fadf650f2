"""What a trace must not take for constant: buffers, attributes, containers, initial values."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from fastard.engine import Program
from tests.engine.networks import images, tiny
from tests.engine.oracle import lived_in
from tests.engine.test_refresh import assert_live, check, distance


class Around(nn.Module):
    """Tiny behind something that a trace would take for constant."""

    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = tiny()[0], kind
        self.frozen, self.scale = FrozenBatchNorm2d(3), 1.0
        self.options, self.levels = {"scale": 1.0}, [1.0, 2.0]
        self.settings = SimpleNamespace(scale=1.0)
        self.register_buffer("std", torch.full((3,), 0.5))
        self.plain = torch.ones(3)

    def forward(self, x):
        if self.kind == "frozen norm":
            x = self.frozen(x)
        elif self.kind == "buffer":
            x = x * (1 / self.std).view(-1, 1, 1)
        elif self.kind == "tensor":
            x = x * self.plain.view(-1, 1, 1)
        elif self.kind == "number":
            x = x * self.scale
        elif self.kind == "dict":
            x = x * self.options["scale"]
        elif self.kind == "object":
            x = x * self.settings.scale
        elif self.kind == "list":
            x = x * self.levels[0]
        elif self.kind == "flag":
            x = x * 0.5 if self.scale != 1 else x
        return self.net(x)


MEANWHILE = {
    "frozen norm": lambda m: m.frozen.running_var.mul_(4),
    "buffer": lambda m: m.std.mul_(2),
    "tensor": lambda m: m.plain.mul_(2),
    "number": lambda m: setattr(m, "scale", 2.0),
    "dict": lambda m: m.options.update(scale=2.0),
    "list": lambda m: m.levels.insert(0, 2.0),
    "object": lambda m: setattr(m.settings, "scale", 2.0),
    "flag": lambda m: setattr(m, "scale", 2.0),
}


@pytest.mark.parametrize("kind", MEANWHILE)
def test_nothing_is_taken_for_constant(kind):
    model, (x, d) = Around(kind).eval(), images(12, count=8)
    program = Program(model)
    assert_live(model, x, d, program)
    before = program.forward(x)
    MEANWHILE[kind](model)
    assert_live(model, x, d, program)
    assert distance(program.forward(x), before) > 1e-3


def test_fresh_networks_are_folded_right_too():
    """At initial statistics a wrong fold would not show; it must not be kept."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc = nn.BatchNorm2d(12), nn.Linear(12, 10)
            self.conv, self.next = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1)
            self.inner = nn.BatchNorm2d(12)

        def forward(self, x):
            x = self.next(self.inner(self.conv(x)))
            return self.fc(self.norm(x)).mean((1, 2))

    model, (x, d) = Odd().eval(), images(12, count=8)
    check(model, x, d, lambda m: lived_in(m, x * 2 - 1))
