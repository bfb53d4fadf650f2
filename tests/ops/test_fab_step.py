"""FAB's operator: its reference against brute force, the kernels against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch.library import opcheck

from fastard import kinds, native, ops
from fastard import reference_fab as reference
from tests.ops.cases import backends, laid_out, native_only
from tests.ops.forcing import forced, isas

NORMS = ("Linf", "L2", "L1")
SIZES = [(5,), (3, 7, 5), (3, 32, 32)]
SHARES = (1e-3, 0.2, 5.0)  # of what the box allows a gap to be


def hyperplanes(shape, share, norm, scale=1e-2):
    """Points with some on the box's faces, gradients with zeros and ties, gaps of both signs."""
    g = torch.Generator().manual_seed(len(shape))
    points = torch.rand(6, *shape, generator=g, dtype=torch.float64)
    w = torch.randn(6, *shape, generator=g, dtype=torch.float64) * scale
    points.view(6, -1)[:, ::7], w.view(6, -1)[:, ::5] = 0.0, 0.0
    w.view(6, -1)[:, 1::6] = scale
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    room = torch.where(w * sign.view(-1, *[1] * len(shape)) > 0, points, 1 - points)
    gap = sign * share * (w.abs() * room).flatten(1).sum(1)
    # fp32 values, so that kernels of either precision see the same problem.
    return points.float().double(), w.float().double(), gap.float().double()


def brute(t, w, gap, norm):
    """One row: the smallest norm of d with w @ d = -gap in the box, by bisection or by greed."""
    w = w if gap >= 0 else -w
    room, size, wanted = torch.where(w > 0, t, 1 - t), w.abs(), abs(gap)
    if norm == "L1":
        total = 0.0
        for s, r in sorted(zip(size.tolist(), room.tolist(), strict=True), reverse=True):
            used = min(r, wanted / s) if s > 0 else 0.0
            wanted, total = wanted - used * s, total + used
        return total
    pace = torch.ones_like(size) if norm == "Linf" else size
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        reached = (size * torch.minimum(middle * pace, room)).sum() >= wanted
        low, high = (low, middle) if reached else (middle, high)
    d = torch.minimum(high * pace, room) * (size > 0)
    return d.max().item() if norm == "Linf" else d.norm().item()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("share", SHARES)
def test_the_reference_solves_the_problem(norm, share):
    points, w, gap = hyperplanes((3, 7, 5), share, norm)
    points, w = points.flatten(1), w.flatten(1)
    d = reference.projection(points, w, gap, norm)
    moved = points + d
    assert moved.min() >= -1e-12 and moved.max() <= 1 + 1e-12
    if share < 1:
        torch.testing.assert_close((w * d).sum(1), -gap, rtol=1e-9, atol=0)
    for i in range(len(w)):
        wanted = brute(points[i], w[i], gap[i].item(), norm)
        assert reference.length(d, norm)[i].item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("share", SHARES)
def test_the_reference_is_the_official_projection(norm, share):
    official = pytest.importorskip(
        "pyautoattack.fab_projections", reason="pyautoattack is not installed"
    )
    points, w, gap = hyperplanes((3, 32, 32), share, norm)
    # Distinct sizes: of ties the official L1 moves whichever its sort names first.
    w = (w * (1 + torch.rand(w.shape, dtype=w.dtype) * 0.1)).flatten(1).float()
    points = points.flatten(1).float()
    level = (w * points).sum(1) - gap.float()
    wanted = getattr(official, f"projection_{norm.lower()}")(points, w, level)
    d = reference.projection(points, w, (w * points).sum(1) - level, norm)
    torch.testing.assert_close(d, wanted, rtol=0, atol=2e-3 if norm == "L1" else 2e-5)
    sizes = (reference.length(v.double(), norm) for v in (d, wanted))
    torch.testing.assert_close(*sizes, rtol=1e-4, atol=1e-6)


def state(points, w, gap, device="cpu", dtype=torch.float64, layout="contiguous"):
    """`fab_step_`'s tensors for six samples, one of each kind."""
    at = laid_out(points.to(device, dtype), layout)
    x = laid_out((points * 0.8 + 0.1).to(device, dtype), layout)
    size = torch.tensor([1e10, 1e10, 1e-9, 1e10, 1e10, 0.0], dtype=dtype, device=device)
    tests = torch.tensor([0, 3, 3, 4, 5, 0], dtype=torch.int32, device=device)
    trying = torch.tensor([False, True, True, True, True, False], device=device)
    fooled = torch.tensor([True, True, True, False, True, True], device=device)
    grad = laid_out(w.to(device, dtype), layout)
    return [at, x.clone(), size, tests, trying, x, grad, gap.to(device, dtype), fooled]


def wide(tensors):
    return [t.cpu().double() if t is not None and t.is_floating_point() else t if t is None
            else t.cpu() for t in tensors]  # fmt: skip


SETTING = (5, 0.0, 0.3, 1.05, 0.9, 0.0, 1.0)  # n_iter, limit, alpha_max, eta, beta, box


@backends
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernel_is_the_reference(norm, shape, dtype, device):
    for share in SHARES:
        given = state(*hyperplanes(shape, share, norm), device, dtype)
        wanted = reference.iteration(*wide(given), norm, *SETTING)
        before = [t.clone() for t in given]
        assert ops.fab_step_(*given, norm, *SETTING) is given[0]
        exact = 1e-9 if dtype == torch.float64 else (2e-4 if norm == "L1" else 5e-6)
        for got, exactly in zip(given[:5], wanted, strict=True):
            torch.testing.assert_close(got.cpu().to(exactly.dtype), exactly, rtol=1e-6, atol=exact)
        for got, same in zip(given[5:], before[5:], strict=True):
            assert torch.equal(got, same)
        # Out of tests; done within the limit; the fooled go back, the others forward.
        assert all(torch.equal(given[0][i], before[0][i]) for i in (4, 5))
        assert given[3].tolist() == [0, 4, 4, 5, 5, 0]
        assert given[4].tolist() == [True, False, False, True, True, False]


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_ends_on_the_hyperplane_within_the_box(norm):
    points, w, gap = hyperplanes((3, 32, 32), 0.2, norm)
    given = state(points, w, gap)
    at = given[0].clone()
    ops.fab_step_(*given, norm, 5, -1.0, 0.0, 1.0)  # no way back, no overshoot
    left = gap + (w * (given[0] - at)).flatten(1).sum(1)
    assert left[0].abs() < 1e-9 * gap[0].abs()
    assert given[0].min() >= 0 and given[0].max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_gradient_only_the_fooled_go_on(norm):
    given = state(*hyperplanes((3, 7, 5), 0.2, norm))
    before = [t.clone() for t in given]
    given[6] = given[7] = None
    wanted = reference.iteration(*given, norm, *SETTING)
    ops.fab_step_(*given, norm, *SETTING)
    for got, exactly in zip(given[:5], wanted, strict=True):
        torch.testing.assert_close(got, exactly)
    gone = [not torch.equal(a, b) for a, b in zip(given[0], before[0], strict=True)]
    assert gone == [False, True, True, False, False, False]
    assert given[3].tolist() == [0, 4, 4, 4, 5, 0]


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_not_finite_moves_nothing_and_nobody_else(norm):
    given = state(*hyperplanes((3, 7, 5), 0.2, norm))
    plain = [t.clone() for t in given]
    given[6][0, 0, 0, 0], given[7][3] = math.nan, math.inf
    ops.fab_step_(*given, norm, 9)
    ops.fab_step_(*plain, norm, 9)
    assert given[0].isfinite().all()
    others = [1, 2, 4, 5]
    assert torch.equal(given[0][others], plain[0][others])
    # The gap is lost: only the mix with x moves that sample.
    x, at = given[5][3], state(*hyperplanes((3, 7, 5), 0.2, norm))[0][3]
    torch.testing.assert_close(given[0][3], at * 0.9 + x * 0.1, rtol=0, atol=0.05)


def test_layouts_gaps_and_an_empty_batch():
    wanted = state(*hyperplanes((3, 7, 5), 0.2, "L2"))
    ops.fab_step_(*wanted, "L2")
    last = state(*hyperplanes((3, 7, 5), 0.2, "L2"), layout="channels_last")
    last[6] = last[6].contiguous()
    gaps = state(*hyperplanes((3, 7, 5), 0.2, "L2"))
    gaps[0] = torch.cat((gaps[0], gaps[0]), 3)[..., :5]
    for given in (last, gaps):
        ops.fab_step_(*given, "L2")
        for got, exactly in zip(given[:5], wanted[:5], strict=True):
            torch.testing.assert_close(got, exactly)
    empty = [t[:0] for t in wanted]
    assert ops.fab_step_(*empty, "L1").shape == (0, 3, 7, 5)


def check_all() -> None:
    """For the process in which an instruction set is forced."""
    for norm in NORMS:
        given = state(*hyperplanes((3, 33, 31), 0.2, norm), dtype=torch.float32)
        wanted = reference.iteration(*wide(given), norm, *SETTING)
        ops.fab_step_(*given, norm, *SETTING)
        for got, exactly in zip(given[:5], wanted, strict=True):
            torch.testing.assert_close(got.to(exactly.dtype), exactly, rtol=1e-6, atol=5e-5)


FORCED = """
from fastard import native
from tests.ops import test_fab_step as t

t.check_all()
print(native.module.cpu_isa())
"""


@native_only
@pytest.mark.parametrize("isa", isas()[:-1])
def test_narrower_instruction_sets(isa):
    assert forced(isa, FORCED) == [isa]


@native_only
def test_opcheck():
    for with_gradient in (True, False):
        given = state(*hyperplanes((3, 7, 5), 0.2, "L2"), dtype=torch.float32)
        given[6:8] = given[6:8] if with_gradient else [None, None]
        opcheck(torch.ops.fastard.fab_step_, (*given, int(kinds.Norm.L2), *SETTING))
    version = given[0]._version
    ops.fab_step_(*given, "L2")
    assert given[0]._version > version and native.module is not None


BAD = [
    (TypeError, "at must be float32 or float64", 0, lambda t: t.half()),
    (ValueError, "best must have at's shape", 1, lambda t: t[:3]),
    (ValueError, "size must be contiguous float64 \\[6\\]", 2, lambda t: t.float()),
    (ValueError, "tests must be contiguous int32 \\[6\\]", 3, lambda t: t.long()),
    (ValueError, "trying must be contiguous bool", 4, lambda t: t.int()),
    (TypeError, "grad must have at's dtype", 6, lambda t: t.float()),
    (ValueError, "grad and gap go together", 7, lambda t: None),
]  # fmt: skip


@pytest.mark.parametrize("error, words, place, change", BAD, ids=[row[1][:24] for row in BAD])
def test_bad_input_is_one_sentence(error, words, place, change):
    given = state(*hyperplanes((3, 7, 5), 0.2, "L2"))
    given[place] = change(given[place])
    before = given[0].clone()
    with pytest.raises(error, match=words):
        ops.fab_step_(*given, "L2")
    assert torch.equal(given[0], before)
