"""What tests of recorded attacks share: small networks, data, a recorded call beside another."""

from __future__ import annotations

import torch
from torch import nn

import fastard
from fastard.engine import capture
from tests.engine.networks import images
from tests.engine.oracle import lived_in

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)


def small(seed: int = 0, classes: int = 10) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(96, classes))  # fmt: skip
    return lived_in(net, images(8)[0])


def data(count: int = 4, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, 8, 8, generator=g)
    return x, torch.randint(0, 10, (count,), generator=g), torch.randn(count, 10, generator=g)


def held(device: str = "cpu") -> int:
    return capture.graphs_of(torch.device(device)).count


def same(model, recorder, x, target, labels=None, seed=0, replays=True, **options):
    """A call through the functions that keep nothing, recorded or replayed, and one that is not."""
    before = recorder.replayed
    torch.manual_seed(seed)
    attack = fastard.PGD(model, **options)
    got = attack(x, target, labels)
    after = torch.get_rng_state()
    torch.manual_seed(seed)
    wanted = fastard.PGD(model, capture="never", **options)(x, target, labels)
    if isinstance(got, tuple):
        assert torch.equal(got[1].loss, wanted[1].loss)
        assert torch.equal(got[1].broken, wanted[1].broken)
        got, wanted = got[0], wanted[0]
    assert torch.equal(got, wanted), attack.program.captured
    assert got.stride() == wanted.stride() and got.dtype == wanted.dtype
    assert torch.equal(after, torch.get_rng_state())
    if replays is not None:
        assert (recorder.replayed > before) == replays, attack.program.captured
    return got


def in_place(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
