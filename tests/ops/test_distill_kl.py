"""`distill_kl` against torch's kl_div, RSLAD's published formula and gradcheck."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard import ops, reference
from tests.ops.cases import CLASSES, DTYPES, LONG_ROW, assert_close, backends

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.filterwarnings("ignore:reduction"),
]


def pair(rows=6, classes=10, dtype=torch.float64, device="cpu"):
    g = torch.Generator().manual_seed(2)
    draw = (torch.randn(2, rows, classes, generator=g, dtype=torch.float64) * 3).to(device, dtype)
    return draw[0].requires_grad_(), draw[1].requires_grad_()


@backends
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("classes", CLASSES)
def test_is_torchs_kl_div(reduction, temperature, classes, device):
    s, t = pair(device=device, classes=classes)
    loss = ops.distill_kl(s, t, temperature, reduction, scale=2.0)
    loss.backward()
    s2, t2 = pair(device=device, classes=classes)
    wanted = 2.0 * F.kl_div(
        (s2 / temperature).log_softmax(1), (t2 / temperature).log_softmax(1),
        reduction=reduction, log_target=True)  # fmt: skip
    wanted.backward()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(s.grad, s2.grad)
    torch.testing.assert_close(t.grad, t2.grad)


@backends
@pytest.mark.parametrize("floor", [0.0, 1e-5, 1e-12])
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
def test_gradcheck(floor, reduction, device):
    s, t = pair(device=device, rows=3, classes=5)
    torch.autograd.gradcheck(
        lambda a, b: ops.distill_kl(a, b, 2.0, reduction, log_floor=floor), (s, t)
    )


@backends
def test_log_floor_is_rslads(device):
    s, t = pair(device=device)
    p = t.detach().softmax(1)
    published = (p * ((p + 1e-5).log() - s.detach().log_softmax(1))).mean()
    torch.testing.assert_close(
        ops.distill_kl(s, t, reduction="mean", log_floor=1e-5).detach(), published
    )


@backends
def test_log_floor_leaves_the_students_gradient(device):
    grads = []
    for floor in (0.0, 1e-5):
        s, t = pair(device=device)
        ops.distill_kl(s, t, log_floor=floor).backward()
        grads.append(s.grad)
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@backends
def test_none_is_the_sum_of_each_row(device):
    s, t = pair(device=device)
    rows = ops.distill_kl(s, t, reduction="none")
    assert rows.shape == (6,)
    torch.testing.assert_close(rows.mean(), ops.distill_kl(s, t))
    weights = torch.arange(6.0, dtype=torch.float64, device=device)
    (rows * weights).sum().backward()
    s2, t2 = pair(device=device)
    F.kl_div(s2.log_softmax(1), t2.log_softmax(1), reduction="none", log_target=True).sum(1).mul(
        weights).sum().backward()  # fmt: skip
    torch.testing.assert_close(s.grad, s2.grad)
    torch.testing.assert_close(t.grad, t2.grad)


@backends
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, device):
    s, t = pair(device=device, rows=32, classes=100, dtype=dtype)
    s, t = s.detach().requires_grad_(), t.detach().requires_grad_()
    loss = ops.distill_kl(s, t)
    loss.backward()
    a, b = (v.detach().double().requires_grad_() for v in (s, t))
    wanted = F.kl_div(a.log_softmax(1), b.log_softmax(1), reduction="batchmean", log_target=True)
    wanted.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-6, atol=0)
    # One rounding of each gradient to its dtype, and fp32's own error before it.
    for ours, exact in ((s.grad, a.grad), (t.grad, b.grad)):
        assert ours.dtype == dtype
        unit = torch.finfo(dtype).eps
        wide = 4e-6 if dtype != torch.float64 else 0.0
        torch.testing.assert_close(
            ours.double(),
            exact,
            rtol=max(unit, wide),
            atol=max(unit * 2e-3, wide * exact.abs().max().item(), 1e-15),
        )


@backends
@pytest.mark.parametrize("floor", [0.0, 1e-5])
@pytest.mark.parametrize("rows, classes", [(1, 10), (131, 10), (9, 257), (5, 1030), (4, LONG_ROW)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_reference(dtype, rows, classes, floor, device):
    """Row counts that fill no block, one and many; rows of a warp and of a block."""
    s, t = pair(rows, classes, dtype, device)
    wanted, *exact = reference.distill_kl(s.detach().double(), t.detach().double(), 2.0, floor)
    per_row = ops.distill_kl(s.detach(), t.detach(), 2.0, "none", log_floor=floor)
    assert_close(per_row, wanted)
    loss = ops.distill_kl(s, t, 2.0, "sum", log_floor=floor)
    loss.backward()
    torch.testing.assert_close(loss.detach().double(), wanted.sum(), rtol=2e-6, atol=0)
    for ours, gradient in zip((s.grad, t.grad), exact, strict=True):
        assert ours.dtype == dtype
        assert_close(ours, gradient, gradient.to(dtype))


@backends
@pytest.mark.parametrize("wants", [(True, False), (False, True), (False, False)])
def test_each_gradient_is_optional(wants, device):
    both = pair(device=device)
    ops.distill_kl(*both, log_floor=1e-5).backward()
    some = [v.requires_grad_(want) for v, want in zip(pair(device=device), wants, strict=True)]
    loss = ops.distill_kl(*some, log_floor=1e-5)
    if any(wants):
        loss.backward()
    for ours, all_of, want in zip(some, both, wants, strict=True):
        assert torch.equal(ours.grad, all_of.grad) if want else ours.grad is None


@backends
def test_minus_infinity(device):
    inf = float("inf")
    s = torch.tensor([[0.0, 1.0, -inf], [0.0, 1.0, 2.0]], device=device, requires_grad=True)
    t = torch.tensor([[0.0, 1.0, -inf], [0.0, 1.0, -inf]], device=device)
    loss = ops.distill_kl(s, t, reduction="sum")
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    torch.testing.assert_close(s.grad, s.detach().softmax(1) - t.softmax(1))
    impossible = ops.distill_kl(s.detach(), torch.zeros_like(t), reduction="none")
    assert impossible[0] == inf and torch.isfinite(impossible[1])


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ticket_and_the_scratch_are_asked_for(dtype, device):
    """A summed loss without them is refused, not misread."""
    backend = ops.backend("distill_kl", device)
    if backend.name != "native":
        pytest.skip(f"the compiled operator does not run on {device}: {backend.reason}")
    z = torch.zeros(2, 3, dtype=dtype, device=device)
    op = torch.ops.fastard.distill_kl
    arguments = (z, z, 1.0, 0.0, 1.0, z.new_empty(()), None, None)
    with pytest.raises(RuntimeError, match="a loss that is summed needs partials"):
        op(*arguments, None, None)
    short = torch.zeros(1, dtype=torch.float64, device=device)
    with pytest.raises(RuntimeError, match="partials must be one float64 per row"):
        op(*arguments, short, None)
    if device == "cuda":
        with pytest.raises(RuntimeError, match="summed on CUDA needs a ticket"):
            op(*arguments, torch.zeros(2, dtype=torch.float64, device=device), None)


@backends
def test_gradient_in_the_teacher_is_finite_where_a_probability_underflows(device):
    s = torch.zeros(1, 3, device=device, requires_grad=True)
    t = torch.tensor([[0.0, 0.0, -300.0]], device=device, requires_grad=True)
    ops.distill_kl(s, t).backward()
    assert torch.isfinite(s.grad).all() and torch.isfinite(t.grad).all()


@backends
def test_detached_teacher_gets_no_gradient_and_empty_batch_is_zero(device):
    s, t = pair(device=device)
    ops.distill_kl(s, t.detach()).backward()
    assert s.grad is not None and t.grad is None
    empty = torch.randn(0, 10, device=device, requires_grad=True)
    loss = ops.distill_kl(empty, empty.detach())
    assert loss == 0
    loss.backward()
    assert empty.grad.shape == (0, 10)


def test_second_derivatives_are_refused():
    s, t = pair()
    (g,) = torch.autograd.grad(ops.distill_kl(s, t), s, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        g.sum().backward()


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"reduction": "avg"}, "reduction must be one of"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"log_floor": -1.0}, "log_floor must not be negative"),
        ({"teacher_logits": torch.zeros(6, 9)}, "teacher_logits must have student_logits's shape"),
        ({"student_logits": torch.zeros(10)}, "must be \\[batch, classes\\]"),
    ],
)
def test_bad_input_is_one_sentence(changed, words):
    s, t = pair()
    with pytest.raises(ValueError, match=words):
        ops.distill_kl(**{"student_logits": s, "teacher_logits": t, **changed})


@backends
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 32768.0, 65536.0])
def test_a_grad_scalers_factor_neither_overflows_nor_comes_too_late(dtype, scale, device):
    g = torch.Generator().manual_seed(0)
    s = (torch.randn(128, 100, generator=g) * 2).to(device, dtype)
    t = (s.float() + 0.05 * torch.randn(128, 100, generator=g).to(device)).to(dtype)
    exact = s.double().requires_grad_()
    F.kl_div(exact.log_softmax(1), t.double().softmax(1), reduction="mean").mul(scale).backward()
    ours = s.clone().requires_grad_()
    ops.distill_kl(ours, t, reduction="mean").mul(scale).backward()
    plain = exact.grad.to(dtype)
    error = (ours.grad.double() - exact.grad).norm()
    assert error <= 1.05 * (plain.double() - exact.grad).norm() + 1e-6 * exact.grad.norm()
