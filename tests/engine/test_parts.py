"""A batch in parts gives what the whole gives; samples that depend on each other stay together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastard.engine import Program
from fastard.engine import parts as parts_module
from tests.api.models import batch, small_net


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("retain", [False, True])
def test_parts_are_the_whole(count, retain):
    x, _, d = batch(10)
    program = Program(small_net())
    with program.running(x):
        plan = program.plan
        assert plan is not None
        plan.parts.known[10] = 1
        logits = program.forward_feed(x)
        dx = program.vjp(d)
        plan.parts.known[10] = count
        torch.testing.assert_close(program.forward_feed(x), logits)
        torch.testing.assert_close(program.infer_feed(x), logits)
        torch.testing.assert_close(program.vjp(d, retain), dx)
        if retain:
            torch.testing.assert_close(program.vjp(2 * d), 2 * dx)


def test_small_networks_are_never_split():
    x, _, _ = batch(8)
    program = Program(small_net())
    with program.running(x):
        program.forward_feed(x)
        assert program.plan.parts.known == {8: 1}


def test_large_activations_are_measured_once(monkeypatch):
    monkeypatch.setattr(parts_module, "LARGE_BYTES", 1 << 12)
    timed = []
    run = parts_module.run
    monkeypatch.setattr(parts_module, "run", lambda *a: timed.append(a[2]) or run(*a))
    x, _, d = batch(8)
    program = Program(small_net())
    with program.running(x):
        for _ in range(2):
            program.forward_feed(x)
            program.vjp(d)
        assert program.plan.parts.known[8] in (1, 2)
    assert timed.count(2) == 3 and timed.count(1) == 3


class Mixing(nn.Module):
    """Every sample's logits depend on the others."""

    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(x - x.mean(0, keepdim=True))


def test_samples_that_depend_on_each_other_stay_together(monkeypatch):
    monkeypatch.setattr(parts_module, "LARGE_BYTES", 1 << 12)
    x, _, _ = batch(8)
    program = Program(Mixing().eval())
    with program.running(x):
        program.forward_feed(x)
        assert program.plan is not None and program.plan.parts.known[8] == 1
