"""APGD's step and bookkeeping against their reference."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.library import opcheck

from fastard import ops, reference_apgd
from fastard.attacks import apgd_official
from fastard.attacks.apgd_schedule import first_marks
from fastard.kinds import Norm
from tests.ops.cases import LAYOUTS, assert_close, backends, laid_out, native_only

pytestmark = pytest.mark.usefixtures("poisoned")
EPS = {"Linf": 0.05, "L2": 0.6, "L1": 4.0}
SHAPES = [(4, 3, 8, 8), (1, 3, 5, 7), (3, 1, 1, 1), (2, 3, 33, 31), (7, 12)]
CASES = [
    case
    for case in itertools.product(EPS, [torch.float32, torch.float64], LAYOUTS, SHAPES)
    if case[2] == "contiguous" or len(case[3]) == 4
]


def drawn(norm, dtype=torch.float32, layout="contiguous", shape=(4, 3, 8, 8), device="cpu"):
    """x_adv, x_old, grad, x, eps, size, share."""
    g = torch.Generator().manual_seed(3)
    x = torch.rand(shape, generator=g)
    near = [(x + 0.03 * torch.randn(shape, generator=g)).clamp(0, 1) for _ in range(2)]
    grad = torch.randn(shape, generator=g) * 1e-3
    grad.view(-1)[:: max(grad.numel() // 3, 1)] = 0
    images = [laid_out(t.to(device, dtype), layout) for t in (*near, grad, x)]
    eps = torch.linspace(0.2, 1, len(x), dtype=dtype, device=device) * EPS[norm]
    return *images, eps, 2 * eps, torch.linspace(0.05, 1, len(x), dtype=dtype, device=device)


def stepped(norm, x_adv, x_old, grad, x, eps, size, share, fresh=0.75):
    l1 = {"share": share, "moved": torch.empty_like(share)} if norm == "L1" else {}
    return ops.apgd_step_(x_adv, x_old, grad, x, eps, size, norm, fresh, **l1)


@backends
@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (3, 3, 33, 31), (2, 3, 65, 65)])
def test_l1_counts_what_the_official_code_counts(shape, device):
    v, _, grad, x, eps, size, share = drawn("L1", shape=shape, device=device)
    new = apgd_official.l1_step(v, grad, x, eps[:, None], size, share, (0.0, 1.0))
    wanted, moved = (new != x).flatten(1).sum(1), torch.full_like(share, -1.0)
    ops.apgd_step_(v, None, grad, x, eps, size, "L1", share=share, moved=moved)
    exactly = (v != x).flatten(1).sum(1)
    n = x[0].numel()
    assert ((moved - wanted).abs() <= 0.01 * n).all() and (exactly <= moved).all()


@backends
@pytest.mark.parametrize("norm, dtype, layout, shape", CASES)
def test_step_matches_reference(norm, dtype, layout, shape, device):
    v, old, *rest = drawn(norm, dtype, layout, shape, device)
    wide = [t.double() for t in (v, old, *rest)]
    # The share of coordinates is rounded in the images' type.
    rounded = rest[:1] if norm == "L1" else []
    exact = reference_apgd.apgd_step(*wide[:6], norm, 0.75, 0.0, 1.0, wide[6])
    if rounded:
        exact = reference_apgd.apgd_step(v, old, *rest[:4], norm, 0.75, 0.0, 1.0, rest[4]).double()
    own, own_old = v.clone(), old.clone()
    assert stepped(norm, own, own_old, *rest) is own
    assert_close(own, exact.contiguous())
    assert torch.equal(own_old, old if norm == "L1" else v)
    order = {"Linf": torch.inf, "L2": 2, "L1": 1}[norm]
    length = (own.double() - rest[1].double()).flatten(1).norm(p=order, dim=1)
    assert (length <= rest[2].double() * (1 + 1e-5) + 1e-7).all()


@backends
@pytest.mark.parametrize("fresh", [0.75, 1.0])
def test_linf_is_bitwise_the_official_formula(fresh, device):
    v, old, grad, x, *_ = drawn("Linf", shape=(5, 3, 33, 31), device=device)
    eps = 8 / 255
    size = torch.tensor([2.0, 1.0, 0.5, 0.25, 2.0], device=device) * torch.tensor(eps)
    step = size.view(-1, 1, 1, 1)

    def inside(t):
        return torch.clamp(torch.min(torch.max(t, x - eps), x + eps), 0.0, 1.0)

    moved = inside(v + step * torch.sign(grad))
    wanted = inside(v + (moved - v) * fresh + (v - old) * (1 - fresh))
    bound = torch.full((1,), eps, device=device)
    own, own_old = v.clone(), old.clone()
    ops.apgd_step_(own, own_old, grad, x, bound, size, "Linf", fresh)
    assert torch.equal(own, wanted) and torch.equal(own_old, v)


# More than a block of a CUDA kernel holds.
@backends
@pytest.mark.parametrize("shape", [(2, 3, 65, 65), (2, 3, 96, 96), (1, 3, 224, 224)])
@pytest.mark.parametrize("norm", EPS)
def test_large_samples(norm, shape, device):
    inputs = drawn(norm, shape=shape)
    exact = reference_apgd.apgd_step(*inputs[:6], norm, 0.75, 0.0, 1.0, inputs[6])
    there = [t.to(device) for t in inputs]
    assert_close(stepped(norm, *there).cpu(), exact.double())


@backends
@pytest.mark.parametrize("norm", EPS)
def test_every_offset_of_a_buffer_and_nothing_beside_it(norm, device):
    v, old, grad, x, *bounds = drawn(norm, shape=(3, 3, 5, 7), device=device)
    wanted = stepped(norm, v.clone(), old.clone(), grad, x, *bounds)
    n = x.numel()
    for offset in range(5):
        buffers = []
        for t in (v, old, grad, x):
            buffer = torch.full((n + 20,), -7.0, device=device)
            buffer[offset : offset + n] = t.flatten()
            buffers.append(buffer)
        views = [b[offset : offset + n].view(x.shape) for b in buffers]
        torch.testing.assert_close(stepped(norm, *views, *bounds), wanted)
        for b in buffers:
            assert (b[:offset] == -7).all() and (b[offset + n :] == -7).all()


@backends
@pytest.mark.parametrize("norm", EPS)
def test_a_nan_gradient_stays_its_samples(norm, device):
    v, old, grad, x, *bounds = drawn(norm, device=device)
    clean = stepped(norm, v.clone(), old.clone(), grad, x, *bounds)
    grad = grad.clone()
    grad[1, 0, 0, 0] = torch.nan
    own = stepped(norm, v.clone(), old.clone(), grad, x, *bounds)
    others = torch.tensor([0, 2, 3], device=device)
    assert own.isfinite().all() and torch.equal(own[others], clean[others])


def kept(x):
    """What a walk keeps, before its first step."""
    return [x.clone(), torch.zeros_like(x), x.clone(), torch.ones(len(x), dtype=torch.bool)]


@backends
@pytest.mark.parametrize("norm", ["Linf", "L1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(6, 3, 8, 8), (5, 3, 5, 7), (3, 1, 1, 1)])
def test_keep_is_bitwise_the_reference(shape, dtype, norm, device):
    g, sparse = torch.Generator().manual_seed(1), norm == "L1"
    x = torch.rand(shape, generator=g).to(dtype)
    loss = torch.randn(len(x), generator=g).to(dtype)
    state = [t.to(device) for t in kept(x)]
    marks = first_marks(loss, x, EPS[norm], Norm[norm], loss, True).to(device)
    own = [t.clone() for t in (*state, marks)]
    wanted = tuple(t.clone() for t in own)
    x, seen = x.to(device), set()
    for i in range(30):
        v = torch.where(torch.rand(shape, generator=g) < 1 / (1 + i), torch.rand(shape), 0.5)
        v = torch.where(v == 0.5, x.cpu(), v.to(dtype)).to(device)
        grad = torch.randn(shape, generator=g).to(device, dtype)
        loss = (torch.randn(len(x), generator=g) + i).to(device, dtype)
        loss[0] = torch.nan if i == 4 else loss[0]
        correct = (torch.rand(len(x), generator=g) > 0.2).to(device)
        window = 3 if i % 3 == 2 else 0
        # As the step tells it.
        for marks in (own[4], wanted[4]):
            marks[reference_apgd.MOVED_NOW] = (v != x).flatten(1).sum(1)
        wanted = reference_apgd.apgd_keep(v, grad, x, loss, correct, *wanted, sparse, window, 0.75)
        ops.apgd_keep_(v, grad, x, loss, correct, *own, sparse=sparse, window=window)
        for a, b in zip(own, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        seen |= set(own[4][reference_apgd.BACK].tolist()) if window else set()
    assert seen == {0.0, 1.0}, "both decisions were met"
    assert not own[3].all()


@backends
def test_no_sample(device):
    v, old, grad, x, eps, size, share = (t[:0] for t in drawn("Linf", device=device))
    assert ops.apgd_step_(v, old, grad, x, eps.new_ones(1), size, "Linf").shape == x.shape
    state = [t.to(device) for t in kept(x.cpu())]
    marks = torch.zeros(9, 0, device=device)
    ops.apgd_keep_(v, grad, x, size, size > 0, *state, marks, window=2)
    assert state[0].shape == x.shape


def test_without_a_kernel(monkeypatch):
    inputs = {norm: drawn(norm) for norm in EPS}
    wanted = {norm: stepped(norm, *(t.clone() for t in inputs[norm])) for norm in EPS}
    monkeypatch.setattr(ops.apgd, "implementation", lambda op, t: None)
    for norm in EPS:
        v, old, *rest = (t.clone() for t in inputs[norm])
        torch.testing.assert_close(stepped(norm, v, old, *rest), wanted[norm])
        assert torch.equal(old, inputs[norm][1 if norm == "L1" else 0])


def test_bad_input():
    v, old, grad, x, eps, size, _ = drawn("Linf")
    with pytest.raises(ValueError, match="share must be given where norm is L1"):
        ops.apgd_step_(v, old, grad, x, eps, size, "L1")
    with pytest.raises(ValueError, match="x_old must be given where norm is L2"):
        ops.apgd_step_(v, None, grad, x, eps, size, "L2")
    with pytest.raises(ValueError, match="grad must have x_adv's shape"):
        ops.apgd_step_(v, old, grad[:1], x, eps, size)
    with pytest.raises(TypeError, match="x must have x_adv's dtype"):
        ops.apgd_step_(v, old, grad, x.double(), eps, size)
    with pytest.raises(TypeError, match="x_adv must be float32 or float64"):
        ops.apgd_step_(v.half(), old, grad, x, eps, size)
    last = old.contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="x_old must have x_adv's memory layout"):
        ops.apgd_step_(v, last, grad, x, eps, size)
    with pytest.raises(ValueError, match="marks must be"):
        ops.apgd_keep_(v, grad, x, eps, eps > 0, *kept(x), torch.zeros(6, 4))


@native_only
@pytest.mark.parametrize("code, norm", list(enumerate(EPS)))
def test_opcheck(code, norm):
    v, old, grad, x, eps, size, share = drawn(norm, shape=(3, 3, 5, 4))
    l1 = (share, torch.empty(3)) if norm == "L1" else (None, None)
    rest = (eps, size, *l1, code, 0.75, 0.0, 1.0)
    opcheck(torch.ops.fastard.apgd_step_, (v, None if norm == "L1" else old, grad, x, *rest))
    marks = first_marks(eps, x, 0.1, Norm[norm], eps, True)
    state = (v.clone(), grad.clone(), v.clone(), eps > 0, marks)
    opcheck(
        torch.ops.fastard.apgd_keep_,
        (v, grad, x, size, eps > 0.3, *state, norm == "L1", 2, 0.75),
    )
