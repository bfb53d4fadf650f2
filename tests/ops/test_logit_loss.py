"""`logit_loss` against the fp64 reference, autograd and torch's own losses."""

# ruff: noqa: E501 - one row of a table, one line

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from fastard import ops, reference
from tests.ops.cases import CLASSES, DTYPES, LONG_ROW, assert_close, backends

pytestmark = pytest.mark.usefixtures("poisoned")

# kind, targeted, options
KINDS = [
    ("kl", False, {}),
    ("kl", False, {"temperature": 4.0}),
    ("kl", True, {"scale": 0.5}),
    ("ce", False, {}),
    ("ce", True, {}),
    ("mixture", False, {"mix": 0.3}),
    ("mixture", False, {"mix": 0.7, "temperature": 2.0}),
    ("margin", False, {"kappa": 1.0}),
    ("margin", True, {"kappa": 50.0}),
    ("dlr", False, {}),
    ("dlr", True, {"scale": 3.0}),
]
kinds = pytest.mark.parametrize(
    "kind, targeted, options",
    KINDS,
    ids=lambda v: str(v) if not isinstance(v, dict) else "-".join(f"{k}{w}" for k, w in v.items()),
)


def inputs(kind, targeted, classes, dtype, device="cpu", rows=9):
    g = torch.Generator().manual_seed(11)
    z = (torch.randn(rows, classes, generator=g) * 4).to(device, dtype)
    t = (torch.randn(rows, classes, generator=g) * 4).to(device, dtype)
    y = torch.randint(0, classes, (rows,), generator=g).to(device)
    goal = (y + torch.randint(1, classes, (rows,), generator=g).to(device)) % classes
    if kind in ("kl", "mixture"):
        return z, t, (y if kind == "mixture" else None)
    return (z, goal, y) if kind == "dlr" and targeted else (z, y, None)


def exact_loss(z, target, labels, kind, targeted, **options):
    soft = kind in ("kl", "mixture")
    goals = target if kind == "dlr" and targeted else None
    return reference.logit_loss(
        z, target if soft else None, kind, labels if labels is not None else target, goals,
        targeted, **options)  # fmt: skip


@backends
@kinds
@pytest.mark.parametrize("classes, dtype", list(itertools.product(CLASSES, DTYPES)))
def test_matches_reference(kind, targeted, options, classes, dtype, device):
    z, target, labels = inputs(kind, targeted, classes, dtype, device)
    widened = target.double() if target.is_floating_point() else target
    exact = exact_loss(z.double(), widened, labels, kind, targeted, **options)
    loss, dlogits = ops.logit_loss(z, target, kind, labels=labels, targeted=targeted, **options)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert dlogits.dtype == dtype and not loss.requires_grad and not dlogits.requires_grad
    assert_close(loss, exact[0])
    assert_close(dlogits, exact[1], exact[1].to(dtype))


@pytest.mark.parametrize("classes", CLASSES)
def test_kl_gradient_in_the_teacher(classes):
    z, t, _ = inputs("kl", False, classes, torch.float32)
    s64, t64 = z.double(), t.double().requires_grad_()
    kl = F.kl_div(
        (s64 / 2).log_softmax(1), (t64 / 2).log_softmax(1), reduction="sum", log_target=True
    )
    (wanted,) = torch.autograd.grad(kl, t64)
    loss, _, dtarget = ops.logit_loss(z, t, "kl", temperature=2.0, teacher_grad=True)
    assert_close(dtarget, wanted)
    torch.testing.assert_close(loss.double().sum(), kl.detach(), rtol=1e-5, atol=1e-5)


@kinds
@pytest.mark.parametrize("classes", [5, 10])
def test_gradient_is_autograd_of_the_loss(kind, targeted, options, classes):
    """dlogits is the numerical derivative of the kernel's own loss, in fp64."""
    z, target, labels = inputs(kind, targeted, classes, torch.float64)
    target = target.double() if target.is_floating_point() else target

    def loss_at(v):
        return ops.logit_loss(v, target, kind, labels=labels, targeted=targeted, **options)[0]

    _, dlogits = ops.logit_loss(z, target, kind, labels=labels, targeted=targeted, **options)
    for c in range(classes):
        nudge = torch.zeros_like(z)
        nudge[:, c] = 1e-6
        slope = (loss_at(z + nudge) - loss_at(z - nudge)) / 2e-6
        torch.testing.assert_close(dlogits[:, c], slope, rtol=1e-6, atol=1e-7)


def test_agrees_with_torchs_losses():
    z, t, _ = inputs("kl", False, 10, torch.float32)
    y = inputs("ce", False, 10, torch.float32)[1]
    kl = F.kl_div(z.log_softmax(1), t.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(ops.logit_loss(z, t)[0], kl, rtol=1e-5, atol=1e-6)
    ce = F.cross_entropy(z, y, reduction="none")
    torch.testing.assert_close(ops.logit_loss(z, y, "ce")[0], ce, rtol=1e-5, atol=1e-6)
    soft = 0.75 * F.one_hot(y, 10) + 0.25 * t.softmax(1)
    mixed = ops.logit_loss(z, t, "mixture", labels=y, mix=0.25)[0]
    torch.testing.assert_close(
        mixed, F.cross_entropy(z, soft, reduction="none"), rtol=1e-5, atol=1e-6
    )
    best_other = z.scatter(1, y[:, None], -1e9).amax(1)
    margin = -(z.gather(1, y[:, None])[:, 0] - best_other + 50).clamp(min=0)
    torch.testing.assert_close(ops.logit_loss(z, y, "margin", kappa=50.0)[0], margin)


def test_agrees_with_autoattacks_dlr():
    z, y, _ = inputs("dlr", False, 10, torch.float32)
    ordered, place = z.sort(dim=1)
    u, hit = torch.arange(len(z)), (place[:, -1] == y).float()
    best_other = ordered[:, -2] * hit + ordered[:, -1] * (1 - hit)
    wanted = -(z[u, y] - best_other) / (ordered[:, -1] - ordered[:, -3] + 1e-12)
    torch.testing.assert_close(ops.logit_loss(z, y, "dlr")[0], wanted)
    z, goal, y = inputs("dlr", True, 10, torch.float32)
    ordered, _ = z.sort(dim=1)
    spread = ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12
    wanted = -(z[u, y] - z[u, goal]) / spread
    torch.testing.assert_close(ops.logit_loss(z, goal, "dlr", labels=y, targeted=True)[0], wanted)


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_for_logits_up_to_1e4(dtype, device):
    g = torch.Generator().manual_seed(1)
    z = (torch.rand(64, 10, generator=g, dtype=dtype) * 2e4 - 1e4).to(device)
    t = (torch.rand(64, 10, generator=g, dtype=dtype) * 2e4 - 1e4).to(device)
    out = ops.logit_loss(z, t, teacher_grad=True)
    assert all(torch.isfinite(o).all() for o in out)
    exact = reference.logit_loss(z.double(), t.double())
    torch.testing.assert_close(out[0].double(), exact[0], rtol=1e-6, atol=1e-6)


@backends
def test_minus_infinity(device):
    inf = float("inf")
    z = torch.tensor([[0.0, 1.0, -inf], [0.0, 1.0, -inf], [0.0, 1.0, 2.0]], device=device)
    t = torch.tensor([[0.0, 1.0, -inf], [0.0, 1.0, 2.0], [0.0, 1.0, -inf]], device=device)
    loss, dlogits = ops.logit_loss(z, t)
    assert torch.isfinite(dlogits).all()
    assert loss[0] == pytest.approx(0.0, abs=1e-7)
    assert loss[1] == inf
    assert torch.isfinite(loss[2])
    torch.testing.assert_close(dlogits, (z.softmax(1) - t.softmax(1)))


@backends
@pytest.mark.parametrize("kind", ["kl", "ce", "margin", "dlr"])
def test_shift_invariance(kind, device):
    z, target, _ = inputs(kind, False, 10, torch.float64, device)
    shifted = ops.logit_loss(z + 123.0, target, kind)
    torch.testing.assert_close(shifted, ops.logit_loss(z, target, kind), rtol=1e-9, atol=1e-9)


@backends
def test_nan_logits_stay_nan(device):
    z = torch.zeros(2, 10, device=device)
    z[0, 3] = float("nan")
    loss, dlogits = ops.logit_loss(z, torch.zeros(2, 10, device=device))
    assert loss[0].isnan() and dlogits[0].isnan().all()
    assert loss[1] == 0 and (dlogits[1] == 0).all()


@backends
def test_one_class_and_empty_batch(device):
    one = torch.randn(3, 1, device=device)
    loss, dlogits = ops.logit_loss(one, one + 1)
    assert (loss == 0).all() and (dlogits == 0).all()
    empty = torch.randn(0, 10, device=device)
    loss, dlogits = ops.logit_loss(empty, empty)
    assert loss.shape == (0,) and dlogits.shape == (0, 10)


def test_views_with_offsets_and_gaps():
    z, t, _ = inputs("kl", False, 10, torch.float32)
    wanted = ops.logit_loss(z, t)
    for offset in range(17):
        wide = torch.full((9, 10 + 20), -7.0)
        wide[:, offset % 20 : offset % 20 + 10] = z
        view = wide[:, offset % 20 : offset % 20 + 10]
        torch.testing.assert_close(ops.logit_loss(view, t), wanted)
        flat = torch.empty(9 * 10 + 20)[offset : offset + 90].view(9, 10).copy_(z)
        torch.testing.assert_close(ops.logit_loss(flat, t), wanted)


def test_half_precision_student_and_fp32_teacher():
    z, t, _ = inputs("kl", False, 100, torch.bfloat16)
    loss, dlogits, dtarget = ops.logit_loss(z, t.float(), teacher_grad=True)
    exact = reference.logit_loss(z.double(), t.double())
    assert_close(loss, exact[0])
    assert dlogits.dtype == torch.bfloat16 and dtarget.dtype == torch.float32


BAD = [
    (ValueError, "unknown loss 'klx'", {"kind": "klx"}),
    (ValueError, "did you mean 'margin'", {"kind": "margn"}),
    (ValueError, "target must have logits's shape", {"target": torch.zeros(4, 9)}),
    (ValueError, "temperature must be positive", {"temperature": 0.0}),
    (ValueError, "logits must be \\[batch, classes\\]", {"logits": torch.zeros(4)}),
    (TypeError, "logits must be float32", {"logits": torch.zeros(4, 10, dtype=torch.int64)}),
    (TypeError, "target must hold integer", {"kind": "ce"}),
    (ValueError, "needs labels=", {"kind": "mixture"}),
    (ValueError, "teacher_grad goes with", {"kind": "ce", "target": torch.zeros(4).long(), "teacher_grad": True}),
    (ValueError, "needs at least 3 classes", {"logits": torch.zeros(4, 2), "kind": "dlr", "target": torch.zeros(4).long()}),
    (ValueError, "labels must lie in .0, 10. for a model of 10", {"kind": "ce", "target": torch.full((4,), 10)}),
]  # fmt: skip


@pytest.mark.parametrize("error, words, changed", BAD, ids=[row[1][:30] for row in BAD])
def test_bad_input_is_one_sentence(error, words, changed):
    arguments = {"logits": torch.zeros(4, 10), "target": torch.zeros(4, 10), **changed}
    with pytest.raises(error, match=words) as caught:
        ops.logit_loss(**arguments)
    assert str(caught.value).strip().count("\n") == 0


@backends
def test_long_rows_lose_no_digits(device):
    g = torch.Generator().manual_seed(1)
    z, t = (torch.randn(2, 4, LONG_ROW, generator=g) * 3).to(device)
    exact = reference.logit_loss(z.double(), t.double())
    for teacher_grad in (False, True):
        out = ops.logit_loss(z, t, teacher_grad=teacher_grad)
        torch.testing.assert_close(out[0].double(), exact[0], rtol=2e-6, atol=0)
        for ours, wanted in zip(out[1:], exact[1:], strict=False):
            assert (ours.double() - wanted).abs().max() <= 4e-6 * wanted.abs().max()
