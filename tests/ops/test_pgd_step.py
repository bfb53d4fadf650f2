"""`pgd_step_` against the fp64 reference, and its properties by name."""

from __future__ import annotations

import pytest
import torch

from fastard import ops, reference
from tests.ops.cases import NORMS, StepCase, assert_close, backends, step_cases, step_inputs

pytestmark = pytest.mark.usefixtures("poisoned")


def exact_step(x_adv, grad, x, eps, alpha, norm, **options):
    as64 = [t.double().contiguous() for t in (x_adv, grad, x)]
    widened = [v.double() if isinstance(v, torch.Tensor) else v for v in (eps, alpha)]
    return reference.pgd_step(*as64, *widened, norm, **options)


@backends
@step_cases
def test_matches_reference(case, device):
    x_adv, grad, x = step_inputs(case, device)
    eps, alpha = NORMS[case.norm]
    exact = exact_step(x_adv, grad, x, eps, alpha, case.norm)
    plain = reference.pgd_step(x_adv, grad, x, eps, alpha, case.norm)
    out = ops.pgd_step_(x_adv, grad, x, eps, alpha, case.norm)
    assert out is x_adv
    assert_close(out, exact, plain)


@backends
@step_cases
def test_per_sample_eps_and_alpha(case, device):
    x_adv, grad, x = step_inputs(case, device)
    eps, alpha = (torch.linspace(0.0, 2 * v, len(x), device=device) for v in NORMS[case.norm])
    exact = exact_step(x_adv, grad, x, eps, alpha, case.norm)
    plain = reference.pgd_step(x_adv, grad, x, eps, alpha, case.norm)
    out = ops.pgd_step_(
        x_adv.clone(), grad, x, eps.view(-1, *[1] * (x.dim() - 1)), alpha, case.norm
    )
    assert_close(out, exact, plain)
    mixed = ops.pgd_step_(x_adv.clone(), grad, x, NORMS[case.norm][0], alpha, case.norm)
    assert_close(mixed, exact_step(x_adv, grad, x, NORMS[case.norm][0], alpha, case.norm), plain)


@backends
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (2, 3, 33, 31)])
def test_linf_fp32_is_bitwise_the_published_update(layout, shape, device):
    x_adv, grad, x = step_inputs(StepCase("Linf", torch.float32, layout, shape), device)
    eps, alpha = 8 / 255, 2 / 255
    published = x_adv + alpha * torch.sign(grad)
    published = torch.min(torch.max(published, x - eps), x + eps)
    published = torch.clamp(published, 0.0, 1.0)
    assert torch.equal(ops.pgd_step_(x_adv, grad, x, eps, alpha), published)


@backends
@pytest.mark.parametrize("grad_dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_fp32_images_take_a_gradient_of_another_dtype(norm, grad_dtype, device):
    case = StepCase(norm, torch.float32, "contiguous", (2, 3, 33, 31))
    x_adv, grad, x = step_inputs(case, device, grad_dtype)
    exact = exact_step(x_adv, grad, x, *NORMS[norm], norm)
    assert_close(ops.pgd_step_(x_adv, grad, x, *NORMS[norm], norm), exact)


@backends
@step_cases
def test_stays_in_ball_and_box(case, device):
    x_adv, grad, x = step_inputs(case, device)
    eps, alpha = NORMS[case.norm]
    out = ops.pgd_step_(x_adv, grad, x, eps, 10 * alpha, case.norm).double()
    order = {"Linf": float("inf"), "L2": 2, "L1": 1}[case.norm]
    distance = (out - x.double()).flatten(1).norm(p=order, dim=1)
    assert (distance <= eps * (1 + 1e-5)).all()
    assert out.min() >= 0 and out.max() <= 1


@backends
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("feed_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalised", [True, False])
def test_feed_is_the_normalised_cast_result(norm, layout, feed_dtype, normalised, device):
    case = StepCase(norm, torch.float32, layout, (2, 3, 33, 31))
    x_adv, grad, x = step_inputs(case, device)
    mean = torch.tensor([0.49, 0.48, 0.44], device=device) if normalised else None
    std = torch.tensor([0.2, 0.25, 0.26], device=device) if normalised else None
    feed = torch.empty_like(x, dtype=feed_dtype)
    ops.pgd_step_(x_adv, grad, x, *NORMS[norm], norm, feed=feed, mean=mean, std=std)
    torch.testing.assert_close(
        feed, reference.feed(x_adv, feed_dtype, mean, std),
        rtol=torch.finfo(feed_dtype).eps, atol=torch.finfo(feed_dtype).eps)  # fmt: skip


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_gradient_moves_nothing(dtype, device):
    for norm in NORMS:
        case = StepCase(norm, dtype, "contiguous", (4, 3, 8, 8))
        x_adv, grad, x = step_inputs(case, device)
        x_adv = x.clone()
        grad[1] = float("nan")
        grad[2, 0, 0, 0] = float("nan")
        out = ops.pgd_step_(x_adv, grad, x, *NORMS[norm], norm)
        assert torch.isfinite(out).all()
        assert torch.equal(out[1], x[1])
        assert out[2, 0, 0, 0] == x[2, 0, 0, 0]
        assert not torch.equal(out[0], x[0])


@backends
def test_infinite_gradients_keep_their_sign_in_linf_and_stop_l2(device):
    x = torch.full((2, 1, 2, 2), 0.5, device=device)
    grad = torch.tensor([float("inf"), -float("inf"), 1.0, -1.0], device=device).view(1, 1, 2, 2)
    grad = grad.expand(2, 1, 2, 2).contiguous()
    out = ops.pgd_step_(x.clone(), grad, x, 0.1, 0.1)
    assert torch.equal(out, reference.pgd_step(x, grad, x, 0.1, 0.1))
    assert torch.equal(ops.pgd_step_(x.clone(), grad, x, 0.1, 0.1, "L2"), x)


@backends
@pytest.mark.parametrize("norm", NORMS)
def test_zero_eps_returns_to_x(norm, device):
    x_adv, grad, x = step_inputs(StepCase(norm, torch.float32, "contiguous", (4, 3, 8, 8)), device)
    torch.testing.assert_close(ops.pgd_step_(x_adv, grad, x, 0.0, 0.1, norm), x, rtol=0, atol=1e-7)


@backends
@pytest.mark.parametrize("norm", NORMS)
def test_empty_batch(norm, device):
    x = torch.empty(0, 3, 8, 8, device=device)
    assert ops.pgd_step_(x.clone(), x, x, norm=norm).shape == (0, 3, 8, 8)


@backends
@pytest.mark.parametrize("norm", NORMS)
def test_every_offset_of_a_buffer_and_nothing_beside_it(norm, device):
    case = StepCase(norm, torch.float32, "contiguous", (2, 1, 5, 5))
    x_adv, grad, x = step_inputs(case, device)
    wanted = ops.pgd_step_(x_adv.clone(), grad, x, *NORMS[norm], norm)
    n = x.numel()
    for offset in range(17):
        buffers = []
        for t in (x_adv, grad, x):
            buffer = torch.full((n + 40,), -7.0, device=device)
            buffer[offset : offset + n] = t.flatten()
            buffers.append(buffer)
        views = [b[offset : offset + n].view(x.shape) for b in buffers]
        ops.pgd_step_(*views, *NORMS[norm], norm)
        torch.testing.assert_close(views[0], wanted)
        assert (buffers[0][:offset] == -7).all() and (buffers[0][offset + n :] == -7).all()


@backends
@pytest.mark.parametrize("norm", NORMS)
def test_layouts_that_differ_or_have_gaps(norm, device):
    x_adv, grad, x = step_inputs(StepCase(norm, torch.float32, "contiguous", (4, 3, 8, 8)), device)
    wanted = ops.pgd_step_(x_adv.clone(), grad, x, *NORMS[norm], norm)
    mixed = ops.pgd_step_(
        x_adv.clone(), grad.contiguous(memory_format=torch.channels_last), x, *NORMS[norm], norm
    )
    torch.testing.assert_close(mixed, wanted)
    wide = torch.full((4, 3, 8, 16), -7.0, device=device)
    wide[..., :8] = x_adv
    ops.pgd_step_(wide[..., :8], grad, x, *NORMS[norm], norm)
    torch.testing.assert_close(wide[..., :8], wanted)
    assert (wide[..., 8:] == -7).all()
    permuted = x_adv.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)
    torch.testing.assert_close(ops.pgd_step_(permuted, grad, x, *NORMS[norm], norm), wanted)


@pytest.mark.parametrize("norm", NORMS)
def test_same_bits_for_any_number_of_threads(norm):
    case = StepCase(norm, torch.float32, "contiguous", (9, 3, 64, 64))
    x_adv, grad, x = step_inputs(case)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.pgd_step_(x_adv.clone(), grad, x, *NORMS[norm], norm))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@backends
def test_l1_moves_only_the_largest_gradients(device):
    x = torch.full((1, 1, 10, 10), 0.5, device=device)
    grad = torch.arange(100.0, device=device).view_as(x) - 10
    moved = ops.pgd_step_(x.clone(), grad, x, 100.0, 1.0, "L1", l1_sparsity=0.1) - x
    assert torch.equal(moved.flatten().nonzero().flatten().cpu(), torch.arange(90, 100))
    torch.testing.assert_close(moved.sum().item(), 1.0, rtol=1e-6, atol=0)


def test_l1_projection_is_the_nearest_point():
    """Against 2,000 random feasible points: none is nearer."""
    g = torch.Generator().manual_seed(3)
    x = torch.rand(1, 12, generator=g, dtype=torch.float64)
    u = torch.randn(1, 12, generator=g, dtype=torch.float64)
    p = reference.project_l1(u, x, 1.0, 0.0, 1.0)
    assert (p - x).abs().sum() <= 1 + 1e-12
    rivals = torch.randn(2000, 12, generator=g, dtype=torch.float64)
    rivals = rivals / rivals.abs().sum(1, keepdim=True) * torch.rand(2000, 1, generator=g).double()
    rivals = (x + rivals).clamp(0, 1)
    assert ((rivals - x - u).norm(dim=1) >= (p - x - u).norm() - 1e-12).all()


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_l1_ranks_minus_zero_as_zero(dtype, device):
    x = torch.full((1, 1, 4, 4), 0.5, device=device, dtype=dtype)
    grad = -torch.zeros_like(x)
    grad.view(-1)[0], grad.view(-1)[1] = 1, -2
    out = ops.pgd_step_(x.clone(), grad, x, 1.0, 0.1, "L1")
    torch.testing.assert_close(out, reference.pgd_step(x, grad, x, 1.0, 0.1, "L1"))
    assert (out != x).sum() == 2
