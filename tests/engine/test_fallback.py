"""Models that resist: the right answer all the same, with the reason, or one clear sentence."""

from __future__ import annotations

import pytest
import torch

import fastard
from fastard.engine import Program
from tests.engine import resisting as r
from tests.engine.networks import images, network
from tests.engine.oracle import agrees, reason

# Model, whether a plan is made, and what the reason or explain() says.
RESISTING = {
    "data-dependent": (r.DataDependent, False, "could not be traced"),
    "a data-dependent part": (r.DataDependentPart, True, "gate: TraceError"),
    "a loop over the batch": (r.LoopOverBatch, False, "could not be traced"),
    "an own backward": (r.StraightThrough, False, "Straight is not traced"),
    "an own backward in a part": (r.StraightThroughPart, True, "round: TypeError"),
    "detached": (r.Detached, True, ""),
    "no_grad": (r.NoGrad, False, "no_grad"),
    "inference_mode": (r.GradOff, False, ""),
    "writes its input": (r.WritesInput, None, ""),
    "overwrites what is read again": (r.WritesWhatIsReadAgain, False, "read again"),
    "in-place relu before a shortcut": (r.InPlaceRelu, False, "read again"),
    "assigns": (r.Assigns, False, ""),
    "one convolution twice": (r.SharedConv, True, ""),
    "one norm after two": (r.SharedNorm, True, ""),
    "one value for three": (r.SharedBranches, True, ""),
    "a value added to itself": (r.Twice, True, ""),
    "optional inputs": (r.Optional, None, ""),
    "constants": (r.Constant, None, ""),
    "shapes": (r.Shapes, None, ""),
    "positions": (r.Positions, True, ""),
}  # fmt: skip


def made(make):
    model = network(make, 12)
    return model, *images(12, count=6)


@pytest.mark.parametrize("name", RESISTING)
def test_right_with_the_reason(name):
    make, planned, why = RESISTING[name]
    model, x, d = made(make)
    kept, before = x.clone(), set(model.__dict__)
    program = agrees(model, x, d)
    assert planned is None or (program.made.plan is not None) == planned, reason(program)
    assert why in program.explain(), program.explain()
    assert torch.equal(x, kept) and set(model.__dict__) == before
    # One image first: the plan must serve more as well.
    for count in (1, 6):
        agrees(model, x[:count], d[:count])
    attack = fastard.PGD(model, norm="L2", eps=3.0, alpha=1.0, steps=2, random_start=False)
    for count in (1, 6):
        got = attack(x[:count], d[:count])
        wanted = fastard.pgd_kl(model, x[:count], d[:count], 3.0, 1.0, 2, norm="L2",
                                random_start=False, engine=False)  # fmt: skip
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", r.ALIASES)
def test_writes_through_another_name(name):
    agrees(*made(lambda: r.Alias(r.ALIASES[name])))


@pytest.mark.parametrize("make", [r.Random, r.Noisy])
def test_random_models_stay_random(make):
    """Each forward draws anew, as in eager autograd, from torch's generator."""
    model, x, d = made(make)
    results = []
    for engine in (True, False, True):
        program = Program(model, engine=engine)
        with program.running(x):
            torch.manual_seed(5)
            feed = program.prepared(x)
            results.append([program.forward_feed(feed) for _ in range(3)])
    assert not torch.equal(results[0][0], results[0][1])
    for a, b, c in zip(*results, strict=True):
        assert torch.equal(a, c)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [r.Counting, r.CountingBuffer, r.CountingPart])
def test_stateful_models_count_as_often_as_they_are_called(make):
    counts, results = [], []
    for engine in (True, False):
        model, x, d = made(make)
        program = Program(model, engine=engine)
        results.append([program.forward(x) for _ in range(3)])
        counts.append(float(model.calls))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert counts[0] == counts[1], "making a plan left the model changed"
