"""`random_start_` against the reference and the published starts."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastard import ops, reference
from tests.ops.cases import DTYPES, LAYOUTS, NORMS, assert_close, backends, laid_out

pytestmark = pytest.mark.usefixtures("poisoned")
CASES = list(itertools.product(NORMS, ["uniform", "gaussian"], DTYPES, LAYOUTS, [True, False]))


def start_inputs(norm, kind, dtype, layout, device):
    g = torch.Generator().manual_seed(5)
    x = laid_out(torch.rand(4, 3, 9, 8, generator=g).to(device, dtype), layout)
    draw = torch.rand if norm == "Linf" and kind == "uniform" else torch.randn
    noise = draw(x.shape, generator=g).to(device)
    return x, noise, torch.rand(4, generator=g).to(device)


@backends
@pytest.mark.parametrize("norm, kind, dtype, layout, clip", CASES)
def test_matches_reference(norm, kind, dtype, layout, clip, device):
    x, noise, radius = start_inputs(norm, kind, dtype, layout, device)
    eps = NORMS[norm][0]
    exact = reference.random_start(
        x.double(), noise.double(), eps, kind, norm, radius.double(), clip=clip
    )
    plain = reference.random_start(x, noise, eps, kind, norm, radius, clip=clip)
    out = ops.random_start_(
        torch.empty_like(x), x, noise, eps, kind, norm, radius=radius, clip=clip
    )
    assert_close(out, exact.contiguous(), plain)


@backends
@pytest.mark.parametrize("norm", NORMS)
def test_per_sample_eps(norm, device):
    x, noise, radius = start_inputs(norm, "uniform", torch.float32, "contiguous", device)
    eps = torch.linspace(0, 1, 4, device=device)
    out = ops.random_start_(torch.empty_like(x), x, noise, eps, "uniform", norm, radius=radius)
    exact = reference.random_start(
        x.double(), noise.double(), eps.double(), "uniform", norm, radius.double()
    )
    assert_close(out, exact)
    torch.testing.assert_close(out[0], x[0], rtol=0, atol=1e-7)


@backends
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (2, 3, 33, 31)])
@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
@pytest.mark.parametrize("clip", [True, False])
def test_fp32_is_bitwise_the_reference(kind, shape, layout, clip, device):
    g = torch.Generator().manual_seed(6)
    x, noise = (laid_out(t, layout).to(device) for t in torch.rand(2, *shape, generator=g))
    wanted = reference.random_start(x, noise, 8 / 255, kind, clip=clip)
    out = ops.random_start_(torch.empty_like(x), x, noise, 8 / 255, kind, clip=clip)
    assert torch.equal(out, wanted)


@backends
@pytest.mark.parametrize("noise_dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
def test_noise_of_any_dtype(norm, noise_dtype, device):
    x, noise, radius = start_inputs(norm, "uniform", torch.float32, "contiguous", device)
    noise, radius = noise.to(noise_dtype), radius.to(noise_dtype)
    exact = reference.random_start(
        x.double(), noise.double(), 0.5, "uniform", norm, radius.double()
    )
    out = ops.random_start_(torch.empty_like(x), x, noise, 0.5, "uniform", norm, radius=radius)
    assert_close(out, exact)


# Samples that one block of a CUDA kernel cannot hold: in odd numbers of elements, in groups of 16
# bytes, and more than a block's shared memory.
@backends
@pytest.mark.parametrize("shape", [(2, 3, 65, 65), (2, 3, 96, 96), (1, 3, 224, 224)])
@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_large_samples(norm, shape, device):
    g = torch.Generator().manual_seed(8)
    x, noise = torch.rand(shape, generator=g), torch.randn(shape, generator=g)
    radius = torch.rand(len(x), generator=g)
    exact = reference.random_start(
        x.double(), noise.double(), 9.0, "uniform", norm, radius.double()
    )
    x, noise, radius = (t.to(device) for t in (x, noise, radius))
    out = ops.random_start_(torch.empty_like(x), x, noise, 9.0, "uniform", norm, radius=radius)
    assert_close(out.cpu(), exact)


@backends
@pytest.mark.parametrize("norm", NORMS)
def test_every_offset_of_a_buffer_and_nothing_beside_it(norm, device):
    x, noise, radius = start_inputs(norm, "uniform", torch.float32, "contiguous", device)
    wanted = ops.random_start_(torch.empty_like(x), x, noise, 0.5, "uniform", norm, radius=radius)
    n = x.numel()
    for offset in range(9):
        buffers = []
        for t in (wanted, x, noise):
            buffer = torch.full((n + 20,), -7.0, device=device)
            buffer[offset : offset + n] = t.flatten()
            buffers.append(buffer)
        out, *inputs = (b[offset : offset + n].view(x.shape) for b in buffers)
        ops.random_start_(out.fill_(9.0), *inputs, 0.5, "uniform", norm, radius=radius)
        torch.testing.assert_close(out, wanted)
        assert (buffers[0][:offset] == -7).all() and (buffers[0][offset + n :] == -7).all()


@backends
@pytest.mark.parametrize("norm", NORMS)
def test_in_place_over_x(norm, device):
    x, noise, radius = start_inputs(norm, "uniform", torch.float32, "contiguous", device)
    wanted = ops.random_start_(torch.empty_like(x), x, noise, 0.5, "uniform", norm, radius=radius)
    assert torch.equal(ops.random_start_(x, x, noise, 0.5, "uniform", norm, radius=radius), wanted)


def test_gaussian_start_is_bitwise_the_published_one():
    x = torch.rand(4, 3, 8, 8)
    torch.manual_seed(1)
    published = x.detach() + 0.001 * torch.randn(x.shape)
    torch.manual_seed(1)
    out = ops.random_start_(
        torch.empty_like(x), x, torch.randn(x.shape), kind="gaussian", clip=False
    )
    assert torch.equal(out, published)


def test_uniform_start_uses_the_draws_of_uniform_():
    x = torch.rand(4, 3, 8, 8)
    torch.manual_seed(1)
    published = x + torch.empty_like(x).uniform_(-0.031, 0.031)
    torch.manual_seed(1)
    out = ops.random_start_(torch.empty_like(x), x, torch.rand(x.shape), 0.031, clip=False)
    torch.testing.assert_close(out, published, rtol=0, atol=6e-8)


@backends
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm, order", [("Linf", float("inf")), ("L2", 2), ("L1", 1)])
def test_uniform_start_lies_in_the_ball(norm, order, dtype, device):
    x, noise, radius = start_inputs(norm, "uniform", dtype, "contiguous", device)
    out = ops.random_start_(torch.empty_like(x), x, noise, 0.7, "uniform", norm, radius=radius)
    distance = (out.double() - x.double()).flatten(1).norm(p=order, dim=1)
    assert (distance <= 0.7 * (1 + 1e-5)).all() and (distance > 0.01).all()
    assert out.min() >= 0 and out.max() <= 1


@backends
@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
def test_empty_batch(kind, device):
    x = torch.empty(0, 3, 8, 8, device=device)
    assert ops.random_start_(torch.empty_like(x), x, x, kind=kind).shape == x.shape


def test_bad_input_is_one_sentence():
    x = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match="kind must be 'uniform' or 'gaussian'"):
        ops.random_start_(x.clone(), x, x, kind="laplace")
    with pytest.raises(ValueError, match="radius must be one number per sample"):
        ops.random_start_(x.clone(), x, x, norm="L2")
    with pytest.raises(ValueError, match="noise must have x_adv's shape"):
        ops.random_start_(x.clone(), x, x[:1])
