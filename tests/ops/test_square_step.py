"""`square_step_`: judging a proposal and writing the next one, against plain PyTorch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.library import opcheck

from fastard import ops, reference_square
from fastard.kinds import Norm
from tests.ops.cases import backends, native_only
from tests.ops.forcing import forced, isas

EPS = {"Linf": 0.1, "L2": 1.0, "L1": 5.0}
SIDES = (5, 3)
STATE = (0, 1, 6, 7, 8)  # what a step writes
CASES = list(itertools.product(EPS, [torch.float32, torch.float64], [False, True], [False, True]))


def drawn(norm, dtype=torch.float32, shape=(6, 3, 9, 14), shared=False, eps_each=True):
    """A step's state; row 2 is solved."""
    g = torch.Generator().manual_seed(1)
    n, c = shape[:2]
    x = torch.rand(shape, generator=g).to(dtype)
    eps = ((torch.rand(n if eps_each else 1, generator=g) + 0.5) * EPS[norm]).to(dtype)
    if norm == "Linf":
        best = reference_square.linf_proposal(x, x, eps, torch.rand(n, 2 + c, generator=g), 5)
    elif norm == "L2":
        noise = torch.randn(shape, generator=g).to(dtype)
        best = reference_square.on_sphere(noise, x, eps)
    else:
        noise = torch.randn(shape, generator=g).to(dtype)
        best = ops.random_start_(torch.empty_like(x), x, noise, eps, "uniform", "L1")
    numbers = reference_square.PLACES[norm] + c
    draws = torch.rand(1 if shared else n, 2, numbers, generator=g)
    y = torch.randint(0, 7, (n,), generator=g)
    margin, loss = torch.rand(n, generator=g) + 0.5, 2 * torch.randn(n, generator=g)
    margin[2:3] = -0.1
    return [best, best.clone(), x, eps, draws, y, margin, loss, torch.ones(n, dtype=torch.int64)]


def queries(norm, logits):
    """The calls of a block of two queries."""
    heaps = [None if norm == "Linf" else
             reference_square.pyramid(s, norm, torch.device("cpu")) for s in SIDES]  # fmt: skip
    return [
        {"proposed": 0, "proposed_side": SIDES[0], "pyramid": heaps[0]},
        {"judged": 0, "judged_side": SIDES[0], "logits": logits, "proposed": 1,
         "proposed_side": SIDES[1], "pyramid": heaps[1]},
        {"judged": 1, "judged_side": SIDES[1], "logits": logits.flip(0).contiguous()},
    ]  # fmt: skip


def referred(state, norm, ce, targeted, call, mean=None, std=None):
    out = reference_square.step(
        *state, norm, ce, targeted, call.get("judged", -1), call.get("judged_side", 0),
        call.get("proposed", -1), call.get("proposed_side", 0), 0.0, 1.0, call.get("logits"),
        call.get("pyramid"), mean, std)  # fmt: skip
    state = list(state)
    for at, value in zip(STATE, out, strict=True):
        state[at] = value
    return state


def moved(call, device):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in call.items()}


@backends
@pytest.mark.parametrize("norm, dtype, ce, targeted", CASES)
def test_a_block_of_queries_is_the_references(norm, dtype, ce, targeted, device):
    state = drawn(norm, dtype, shared=ce)
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(3))
    taken = 0
    for call in queries(norm, logits):
        own = [t.clone().to(device) for t in state]
        ops.square_step_(*own, Norm[norm], ce=ce, targeted=targeted, **moved(call, device))
        before, state = state, referred(state, norm, ce, targeted, call)
        for at in STATE:
            # L1's displacements reach 5 in fp32.
            close = 1e-12 if dtype == torch.float64 and at < 2 else 5e-6
            torch.testing.assert_close(own[at].cpu(), state[at], rtol=0, atol=close)
        if norm == "Linf" and dtype == torch.float32:
            assert torch.equal(own[0].cpu(), state[0]) and torch.equal(own[1].cpu(), state[1])
        taken += int((before[6] != state[6]).sum())
    assert 0 < taken < 10 and state[8].tolist() != [3] * 6, "some are taken, some refused"
    assert state[8][2] == 1 and torch.equal(state[0][2], before[0][2]), "a solved row stays"


@backends
@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (3, 1, 5, 9)])
def test_linf_writes_the_networks_normalised_input(shape, device):
    state = drawn("Linf", shape=shape, eps_each=False)
    mean, std = torch.tensor([0.1, 0.2, 0.3])[: shape[1]], torch.tensor([0.5, 0.6, 0.7])[: shape[1]]
    state[1] = ops.prepared(state[0], mean, std)
    logits = torch.randn(len(state[0]), 7, generator=torch.Generator().manual_seed(4))
    own = [t.clone().to(device) for t in state]
    for call in queries("Linf", logits):
        ops.square_step_(*own, Norm.Linf, mean=mean.to(device), std=std.to(device),
                         **moved(call, device))  # fmt: skip
        state = referred(state, "Linf", False, False, call, mean, std)
        assert torch.equal(own[0].cpu(), state[0]) and torch.equal(own[1].cpu(), state[1])


@backends
def test_nan_logits_are_refused_and_poison_no_other_row(device):
    state = [t.to(device) for t in drawn("Linf", eps_each=False)]
    call = queries("Linf", torch.zeros(6, 7))[0]
    ops.square_step_(*state, Norm.Linf, **call)
    logits = torch.zeros(6, 7)
    logits[torch.arange(6), state[5].cpu()] = -1.0  # all have their way, but for two
    logits[0, state[5][0]], logits[1, (state[5][1] + 1) % 7] = float("nan"), float("nan")
    ops.square_step_(*state, Norm.Linf, logits=logits.to(device), judged=0, judged_side=SIDES[0])
    assert (state[6].cpu() > 0).tolist() == [True, True, False, False, False, False]
    assert torch.isfinite(state[6]).all() and torch.isfinite(state[7]).all()
    assert torch.equal(state[0][:2], state[1][:2]), "refused proposals are put back"


@pytest.mark.parametrize("norm", EPS)
def test_without_a_kernel_the_reference_runs(norm, monkeypatch):
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(3))
    own, plain = drawn(norm), drawn(norm)
    for call in queries(norm, logits):
        ops.square_step_(*own, Norm[norm], **call)
    monkeypatch.setattr("fastard.ops.square.implementation", lambda op, t: None)
    for call in queries(norm, logits):
        ops.square_step_(*plain, Norm[norm], **call)
    for at in STATE:
        torch.testing.assert_close(own[at], plain[at], rtol=0, atol=5e-6)


@native_only
@pytest.mark.parametrize("norm", EPS)
def test_opcheck_and_offset_views(norm):
    state = drawn(norm)
    for at in STATE:
        big = torch.cat((state[at][:1], state[at]))
        state[at] = big[1:]
    call = queries(norm, torch.randn(6, 7))[1]
    args = (*state, int(Norm[norm]), True, False, call["judged"], SIDES[0], call["proposed"],
            SIDES[1], 0.0, 1.0, call["logits"], call["pyramid"], None, None)  # fmt: skip
    opcheck(torch.ops.fastard.square_step_.default, args)


@native_only
def test_an_empty_batch_and_what_the_boundary_refuses():
    empty = drawn("L2", shape=(0, 3, 9, 9), eps_each=False)
    call = queries("L2", torch.zeros(0, 7))[1]
    ops.square_step_(*empty, Norm.L2, **call)
    state = drawn("L2")
    call = queries("L2", torch.zeros(6, 7))[1]
    for change, match in [
        ({"judged_side": 10}, "judged_side"), ({"proposed": 2}, "proposed"),
        ({"logits": torch.zeros(6, 1)}, "logits"), ({"pyramid": None}, "pyramid"),
        ({"logits": torch.zeros(5, 7)}, "logits"), ({"logits": None}, "go together"),
        ({"mean": torch.zeros(3), "std": torch.ones(3)}, "Linf"),
    ]:  # fmt: skip
        with pytest.raises(RuntimeError, match=match):
            ops.square_step_(*state, Norm.L2, **{**call, **change})
    state[5][4] = 7
    with pytest.raises(RuntimeError, match="label"):
        ops.square_step_(*state, Norm.L2, **call)
    with pytest.raises(RuntimeError, match="draws"):
        ops.square_step_(*state[:4], torch.rand(6, 2, 5), *state[5:], Norm.L2, **call)


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_pyramids_are_the_official_ones(norm):
    official = pytest.importorskip("pyautoattack.square", reason="pyautoattack is not installed")
    attack = official.SquareAttack(None, norm=norm, eps=1.0, device="cpu")
    for side in (1, 2, 3, 6, 7, 29, 44):
        torch.manual_seed(side)
        wanted = attack.eta(side)
        torch.manual_seed(side)
        found = reference_square.pyramid(side, norm, torch.device("cpu"))
        assert torch.equal(wanted, found.t() if torch.rand([1]) > 0.5 else found)


EVERY_NORM = """
import torch
from tests.ops.test_square_step import STATE, drawn, queries, referred
from fastard import native, ops
from fastard.kinds import Norm
logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(3))
for norm in ("Linf", "L2", "L1"):
    state = drawn(norm)
    for call in queries(norm, logits):
        own = [t.clone() for t in state]
        ops.square_step_(*own, Norm[norm], ce=True, **call)
        state = referred(state, norm, True, False, call)
        for at in STATE:
            torch.testing.assert_close(own[at], state[at], rtol=0, atol=5e-6)
print(native.module.cpu_isa())
"""


@native_only
def test_the_narrowest_instruction_set():
    assert forced(isas()[0], EVERY_NORM) == ["base"]
