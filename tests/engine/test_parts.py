"""A batch in parts gives what the whole gives; samples that depend on each other stay together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastard.engine import Program
from fastard.engine import parts as parts_module
from tests.api.models import batch, small_net


@pytest.fixture
def split(monkeypatch):
    """Parts of two images at least, of few bytes."""
    monkeypatch.setattr(parts_module, "LARGE_BYTES", 1 << 10)
    monkeypatch.setattr(parts_module, "FEWEST", 2)


@pytest.mark.parametrize("count", [5, 10, 11])
@pytest.mark.parametrize("retain", [False, True])
def test_parts_are_the_whole(count, retain, split, monkeypatch):
    x, _, d = batch(count)
    program = Program(small_net())
    with program.running(x):
        assert program.plan.parts.of(count) == count // 2
        got = program.forward_feed(x), program.infer_feed(x), program.vjp(d, retain)
        if retain:
            torch.testing.assert_close(program.vjp(2 * d), 2 * got[2])
        monkeypatch.setattr(parts_module, "LARGE_BYTES", 1 << 30)
        assert program.plan.parts.of(count) == 1
        wanted = program.forward_feed(x), program.infer_feed(x), program.vjp(d)
    torch.testing.assert_close(got, wanted)


def test_bf16_in_parts(split):
    x, _, d = batch(8)
    program = Program(small_net(), "bf16")
    with program.running(x):
        assert program.plan.parts.of(8) == 4


def test_few_images_and_small_networks_are_never_split():
    x, _, _ = batch(8)
    program = Program(small_net())
    with program.running(x):
        parts = program.plan.parts
        assert parts.of(8) == parts.of(256) == 1
        assert parts.of(31) == 1 and parts.of(1 << 16) > 1


class Mixing(nn.Module):
    """Every sample's logits depend on the others."""

    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(x - x.mean(0, keepdim=True))


def test_samples_that_depend_on_each_other_stay_together(split):
    x, _, _ = batch(8)
    program = Program(Mixing().eval())
    with program.running(x):
        assert program.plan is not None and program.plan.parts.of(8) == 1
