"""The operators as torch sees them: opcheck, compile, versions, no copies left behind."""

# ruff: noqa: E501 - one row of a table, one line

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from fastard import ops, reference
from tests.ops.cases import NORMS, native_only

pytestmark = native_only


def images(dtype=torch.float32, memory_format=torch.contiguous_format):
    x = torch.rand(3, 3, 6, 5).to(dtype).contiguous(memory_format=memory_format)
    return (x + 0.01).clamp(0, 1), torch.randn_like(x), x


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("code", [0, 1, 2])
def test_opcheck_pgd_step(code, dtype, memory_format):
    x_adv, grad, x = images(dtype, memory_format)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    feed, mean, std = torch.empty_like(x), torch.zeros(3), torch.ones(3)
    for tail in ((None, None, None), (feed, mean, std)):
        opcheck(
            torch.ops.fastard.pgd_step_.Scalar,
            (x_adv, grad, x, 0.03, 0.01, code, 0.0, 1.0, 0.2, *tail),
        )
    bounds = torch.full((3,), 0.03, dtype=wide), torch.full((1,), 0.01, dtype=wide)
    opcheck(
        torch.ops.fastard.pgd_step_.Tensor,
        (x_adv, grad, x, *bounds, code, 0.0, 1.0, 0.2, None, None, None),
    )


@pytest.mark.parametrize("code", [0, 1, 2])
def test_opcheck_random_start(code):
    x_adv, noise, x = images()
    radius = torch.rand(3)
    for kind in (0, 1):
        opcheck(
            torch.ops.fastard.random_start_.Scalar,
            (x_adv, x, noise, radius, 0.1, code, kind, 0.001, True, 0.0, 1.0),
        )
        opcheck(
            torch.ops.fastard.random_start_.Tensor,
            (x_adv, x, noise, radius, torch.tensor([0.1]), code, kind, 0.001, False, 0.0, 1.0),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_opcheck_rows(dtype):
    z, t = torch.randn(2, 4, 10).to(dtype)
    y, loss = torch.randint(0, 10, (4,)), torch.empty(4)
    args = (False, 1.0, 0.0, 0.5, 1.0, loss, torch.empty_like(z))
    opcheck(torch.ops.fastard.logit_loss, (z, t, None, None, 0, *args, torch.empty_like(t)))
    opcheck(torch.ops.fastard.logit_loss, (z, None, y, None, 1, *args, None))
    scratch = torch.empty(4, dtype=torch.float64)
    opcheck(
        torch.ops.fastard.distill_kl,
        (z, t, 1.0, 1e-5, 1.0, torch.empty(()), torch.empty_like(z), None, scratch, None),
    )


@pytest.mark.parametrize("norm", NORMS)
def test_step_compiles_whole_and_once(norm):
    torch._dynamo.reset()

    def step(x_adv, grad, x):
        return ops.pgd_step_(x_adv, grad, x, *NORMS[norm], norm) * 1.0

    compiled = torch.compile(step, fullgraph=True)
    x_adv, grad, x = images()
    wanted = step(x_adv.clone(), grad, x)
    torch.testing.assert_close(compiled(x_adv.clone(), grad, x), wanted)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(x_adv.clone(), grad * 2, x)


def test_start_and_loss_compile_whole():
    torch._dynamo.reset()

    def both(x_adv, x, noise, z, t):
        ops.random_start_(x_adv, x, noise, 0.1)
        return x_adv + 0, *ops.logit_loss(z, t, teacher_grad=True)

    x_adv, _, x = images()
    arguments = (x, torch.rand_like(x), *torch.randn(2, 4, 10))
    wanted = both(x_adv.clone(), *arguments)
    got = torch.compile(both, fullgraph=True)(x_adv.clone(), *arguments)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("teacher_needs_grad", [True, False])
def test_distill_kl_compiles_whole_with_its_backward(teacher_needs_grad):
    torch._dynamo.reset()

    def loss(z, t):
        return ops.distill_kl(z * 2, t, 2.0) + z.square().mean()

    results = []
    for run in (loss, torch.compile(loss, fullgraph=True)):
        g = torch.Generator().manual_seed(0)
        z = torch.randn(4, 10, generator=g).requires_grad_()
        t = torch.randn(4, 10, generator=g).requires_grad_(teacher_needs_grad)
        value = run(z, t)
        value.backward()
        results.append((value.detach(), z.grad, t.grad if teacher_needs_grad else z.grad))
    torch.testing.assert_close(results[1], results[0])


def test_mutations_move_the_version_counter():
    x_adv, grad, x = images()
    before = x_adv._version
    ops.pgd_step_(x_adv, grad, x)
    assert x_adv._version > before
    before = x_adv._version
    ops.random_start_(x_adv, x, torch.rand_like(x))
    assert x_adv._version > before
    leaf = torch.rand(2, 3, requires_grad=True)
    saved = leaf * 1.0
    out = saved.square()
    with torch.no_grad():
        ops.pgd_step_(saved.detach(), torch.ones(2, 3), torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_arguments_that_require_grad_are_not_followed():
    x_adv, grad, x = (t.requires_grad_() for t in images())
    with torch.no_grad():
        ops.pgd_step_(x_adv, grad, x)
    loss, dlogits = ops.logit_loss(torch.randn(4, 10, requires_grad=True), torch.randn(4, 10))
    assert not loss.requires_grad and not dlogits.requires_grad


def test_under_inference_mode():
    with torch.inference_mode():
        x_adv, grad, x = images()
        wanted = reference.pgd_step(x_adv, grad, x, 0.03, 0.01)
        assert torch.equal(ops.pgd_step_(x_adv, grad, x, 0.03, 0.01), wanted)
        assert ops.logit_loss(torch.randn(4, 10), torch.randn(4, 10))[0].shape == (4,)


def test_the_boundary_itself_refuses_what_python_would():
    x_adv, grad, x = images()
    step = torch.ops.fastard.pgd_step_.Scalar
    tail = (0.03, 0.01, 0, 0.0, 1.0, 0.2, None, None, None)
    with pytest.raises(RuntimeError, match="grad must have x_adv's shape"):
        step(x_adv, grad[:2], x, *tail)
    with pytest.raises(RuntimeError, match="grad must have x_adv's memory layout"):
        step(x_adv, grad.contiguous(memory_format=torch.channels_last), x, *tail)
    with pytest.raises(RuntimeError, match="x must have x_adv's dtype"):
        step(x_adv, grad, x.double(), *tail)
    with pytest.raises(RuntimeError, match="must be dense with samples outermost"):
        step(x_adv[..., :3], grad[..., :3], x[..., :3], *tail)
    with pytest.raises(RuntimeError, match="mean and std go together"):
        step(x_adv, grad, x, *tail[:-2], torch.zeros(3), None)
    with pytest.raises(RuntimeError, match="x_adv|must be float32"):
        step(x_adv.long(), grad, x.long(), *tail)


BAD_STEP = [
    (ValueError, "grad must have x_adv's shape", {"grad": torch.zeros(3, 3, 6, 4)}),
    (TypeError, "x must have x_adv's dtype", {"x": torch.zeros(3, 3, 6, 5).double()}),
    (TypeError, "x_adv must be float32", {"x_adv": torch.zeros(3, 3, 6, 5).int()}),
    (ValueError, "eps must be finite and not negative", {"eps": -0.1}),
    (ValueError, "alpha must be finite and not negative", {"alpha": float("nan")}),
    (ValueError, "eps must be a number or a floating tensor of one value or one per", {"eps": torch.ones(2)}),
    (TypeError, "eps must be a number", {"eps": "0.1"}),
    (ValueError, "unknown norm 'L3'", {"norm": "L3"}),
    (ValueError, "clip_min must be below clip_max", {"clip_min": 1.0}),
    (ValueError, "l1_sparsity must lie in", {"l1_sparsity": 0.0}),
    (ValueError, "mean and std go together", {"mean": torch.zeros(3)}),
    (ValueError, "x must be on x_adv's device", {"x": torch.empty(3, 3, 6, 5, device="meta")}),
]  # fmt: skip


@pytest.mark.parametrize("error, words, changed", BAD_STEP, ids=[row[1][:24] for row in BAD_STEP])
def test_bad_input_is_one_sentence_and_changes_nothing(error, words, changed):
    x_adv, grad, x = images()
    arguments = {"x_adv": x_adv, "grad": grad, "x": x, **changed}
    before = arguments["x_adv"].clone()
    with pytest.raises(error, match=words) as caught:
        ops.pgd_step_(**arguments)
    assert "\n" not in str(caught.value)
    assert torch.equal(arguments["x_adv"], before)
