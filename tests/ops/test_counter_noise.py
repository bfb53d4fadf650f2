"""Noise keyed by what it is for, against the published Philox and the reference."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from fastard import ops, reference_noise
from fastard.attacks.draws import CounterDraws, GeneratorDraws, OfficialDraws
from tests.ops.cases import backends, native_only

pytestmark = pytest.mark.usefixtures("poisoned")

# Random123's known answers: counter, key, bits.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, bits", KNOWN)
def test_the_reference_is_philox(counter, key, bits):
    seed = key[0] | key[1] << 32
    found = reference_noise.philox([torch.tensor([c]) for c in counter], seed)
    assert tuple(int(b) for b in found) == bits


@backends
def test_the_first_block_is_the_known_answer(device):
    found = ops.counter_noise(torch.zeros(1, dtype=torch.int64, device=device), 4, 0, 0, 0)
    wanted = torch.tensor([bits >> 8 for bits in KNOWN[0][2]]).float() * 2.0**-24
    assert torch.equal(found.cpu(), wanted[None])


IDS = torch.tensor([3, 0, 2**33 + 7, 99999, 2**32 - 1])


@backends
@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 + 5, 2**64 - 1])
@pytest.mark.parametrize("numbers", [1, 2, 3, 4, 1023, 1024, 3073])
def test_matches_reference(numbers, seed, device):
    ids, key = IDS.to(device), (seed, (5 << 28) + 3, 2**32 - 1)
    uniform = ops.counter_noise(ids, numbers, *key)
    assert torch.equal(uniform, reference_noise.counter_noise(ids, numbers, *key, False))
    assert uniform.min() >= 0 and uniform.max() < 1
    normal = ops.counter_noise(ids, numbers, *key, normal=True)
    exact = reference_noise.counter_noise(ids, numbers, *key, True)
    torch.testing.assert_close(normal, exact, rtol=5e-7, atol=5e-7)


@backends
def test_numbers_belong_to_their_sample(device):
    ids = torch.arange(9, device=device)
    for normal in (False, True):
        whole = ops.counter_noise(ids, 50, 1, 2, 3, normal)
        order = torch.tensor([4, 8, 1], device=device)
        assert torch.equal(ops.counter_noise(order, 50, 1, 2, 3, normal), whole[order])
        assert torch.equal(ops.counter_noise(order, 20, 1, 2, 3, normal), whole[order, :20])
        for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
            assert not torch.equal(ops.counter_noise(ids, 50, *other, normal), whole)


def test_moments():
    uniform = ops.counter_noise(torch.arange(64), 10000, 5, 0, 0)
    normal = ops.counter_noise(torch.arange(64), 10000, 5, 0, 0, normal=True)
    assert uniform.mean() == pytest.approx(0.5, abs=2e-3)
    assert uniform.var() == pytest.approx(1 / 12, abs=1e-3)
    assert normal.mean() == pytest.approx(0, abs=5e-3)
    assert normal.std() == pytest.approx(1, abs=5e-3)
    assert (normal**3).mean() == pytest.approx(0, abs=2e-2)
    assert (normal**4).mean() == pytest.approx(3, abs=5e-2)
    assert torch.corrcoef(normal.view(-1, 2).T)[0, 1] == pytest.approx(0, abs=5e-3)


@backends
def test_none(device):
    ids = torch.arange(3, device=device)
    assert ops.counter_noise(ids[:0], 5, 0, 0, 0).shape == (0, 5)
    assert ops.counter_noise(ids, 0, 0, 0, 0, True).shape == (3, 0)


def test_bad_input():
    with pytest.raises(TypeError, match="ids must be an int64 tensor"):
        ops.counter_noise(torch.ones(3), 4, 0, 0, 0)
    with pytest.raises(ValueError, match="numbers must not be negative"):
        ops.counter_noise(torch.arange(3), -1, 0, 0, 0)


@native_only
def test_opcheck():
    for normal in (False, True):
        opcheck(
            torch.ops.fastard.counter_noise, (torch.arange(3), 1, 2, 3, normal, torch.empty(3, 5))
        )


def test_draws():
    ids, shape = torch.tensor([5, 1]), (3, 4)
    own = CounterDraws(3, "apgd-t")
    assert torch.equal(
        own.randn(ids, shape, restart=1, target=4)[1:],
        own.randn(ids[1:], shape, restart=1, target=4),
    )
    assert not torch.equal(own.rand(ids, shape), CounterDraws(3, "apgd-ce").rand(ids, shape))
    assert not torch.equal(own.rand(ids, shape), CounterDraws(3, "apgd-t", 1).rand(ids, shape))
    state = torch.get_rng_state()
    official = OfficialDraws(7.9)
    found = official.rand(ids, shape), official.randn(ids, shape, shared=True)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(7)
    assert torch.equal(found[0], torch.rand(2, 3, 4))
    assert torch.equal(found[1], torch.randn(1, 3, 4))
    torch.manual_seed(7)
    assert torch.equal(GeneratorDraws(None).rand(ids, shape), found[0])
