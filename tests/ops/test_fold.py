"""Folded weights: the kernel, through `Weights`, equals the reference in every dtype and layout."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.library import opcheck

from fastard import reference_layers
from fastard.engine.layers import Norm, Param
from fastard.engine.weights import StaleProgram, Weights, live
from tests.ops.cases import native_only

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Of the folded copies' own units in the last place.
ULPS = {torch.float32: 2e-7, torch.bfloat16: 2**-8, torch.float16: 2**-10}
SHAPES = [(8, 5, 3, 3), (17, 33, 1, 1), (6, 1, 5, 5), (4, 3, 1, 7), (10, 13), (1, 1, 1, 1)]


class Held(nn.Module):
    """A weight [O, I, ...], a bias and two normalisations, of O and of I channels."""

    def __init__(self, shape, dtype=torch.float32, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(shape, generator=g).to(dtype))
        self.bias = nn.Parameter(torch.randn(shape[0], generator=g).to(dtype))
        for side, n in (("after", shape[0]), ("before", shape[1])):
            for name in ("gain", "shift", "mean"):
                self.register_buffer(f"{side}_{name}", torch.randn(n, generator=g).to(dtype))
            self.register_buffer(f"{side}_var", (torch.rand(n, generator=g) + 0.1).to(dtype))

    def norm(self, side, eps=1e-3, affine=True):
        named = [Param("", f"{side}_{n}") for n in ("mean", "var", "gain", "shift")]
        return Norm(named[0], named[1], *(named[2:] if affine else (None, None)), eps)


def described(model, bias, before, after):
    """The reference's arguments."""
    tensors = [model.weight, live(model, bias) if bias else None]
    for norm in (after, before):
        params = (norm.gain, norm.shift, norm.mean, norm.var) if norm else (None,) * 4
        tensors += [None if p is None else live(model, p) for p in params]
    return tensors, (after.eps if after else 0.0), (before.eps if before else 0.0)


def assert_folded(entry, wanted):
    for got, exact in zip((entry.weight, entry.bias), wanted, strict=False):
        assert got.shape == exact.shape
        torch.testing.assert_close(
            got.float(), exact.to(got.dtype).float(), rtol=ULPS[got.dtype], atol=ULPS[got.dtype]
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_against_reference(shape, dtype, either):
    model, weights, made = Held(shape), Weights(torch.device("cpu")), []
    four = len(shape) == 4
    for biased, last, before, after in itertools.product((False, True), repeat=4):
        if last and not four:
            continue
        bias = Param("", "bias") if biased else None
        norms = (model.norm("before", affine=last) if before else None,
                 model.norm("after", 1e-5, affine=biased) if after else None)  # fmt: skip
        entry = weights.convolution(Param("", "weight"), bias, *norms, shape, dtype, last)
        made.append((entry, described(model, bias, *norms)))
    affine = weights.affine(model.norm("after"), shape[0])
    weights.allocate()
    weights.refresh(model)
    for entry, (tensors, *epsilons) in made:
        assert_folded(entry, reference_layers.fold(tensors, *epsilons, shape[0]))
        if four and entry.channels_last:
            assert entry.weight.is_contiguous(memory_format=torch.channels_last)
    tensors, *epsilons = described(model, None, None, model.norm("after"))
    *_, shift, scale = reference_layers.fold([None, *tensors[1:]], *epsilons, shape[0])
    torch.testing.assert_close(affine.bias, shift.float(), rtol=2e-7, atol=2e-7)
    torch.testing.assert_close(affine.scale, scale.float(), rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("held", [*DTYPES, torch.float64], ids=lambda d: str(d)[6:])
def test_parameters_of_every_dtype_and_stride(held, either):
    model = Held((6, 5, 3, 3), held)
    model.weight = nn.Parameter(model.weight.detach().contiguous(memory_format=torch.channels_last))
    model.bias = nn.Parameter(model.bias.detach().repeat_interleave(2)[::2])
    model.after_mean = model.after_mean[:1].expand(6)
    norms = (model.norm("before"), model.norm("after"))
    weights = Weights(torch.device("cpu"))
    shape, bias = tuple(model.weight.shape), Param("", "bias")
    entry = weights.convolution(Param("", "weight"), bias, *norms, shape, torch.float32, True)
    weights.allocate()
    weights.refresh(model)
    tensors, *epsilons = described(model, bias, *norms)
    assert_folded(entry, reference_layers.fold(tensors, *epsilons, 6))


def test_a_folded_convolution_is_the_convolution(either):
    """Normalisation, convolution, normalisation in fp64 by torch."""
    model = Held((6, 5, 1, 1))
    weights, shape = Weights(torch.device("cpu")), (6, 5, 1, 1)
    norms = (model.norm("before"), model.norm("after"))
    entry = weights.convolution(
        Param("", "weight"), Param("", "bias"), *norms, shape, torch.float32, True
    )
    weights.allocate()
    weights.refresh(model)
    x = torch.randn(2, 5, 4, 4).double()

    def normalised(v, side):
        named = (getattr(model, f"{side}_{n}").double() for n in ("mean", "var", "gain", "shift"))
        return nn.functional.batch_norm(v, *named, training=False, eps=1e-3)

    v = normalised(x, "before")
    v = nn.functional.conv2d(v, model.weight.double(), model.bias.double())
    y = normalised(v, "after")
    got = nn.functional.conv2d(x, entry.weight.double(), entry.bias.double())
    torch.testing.assert_close(got, y, rtol=1e-5, atol=1e-5)


def test_refresh_follows_new_values_and_new_tensors():
    model, weights = Held((6, 5, 3, 3)), Weights(torch.device("cpu"))
    norms = (None, model.norm("after"))
    entry = weights.convolution(
        Param("", "weight"), Param("", "bias"), *norms, (6, 5, 3, 3), torch.float32, False
    )
    weights.allocate()
    weights.refresh(model)
    for change in (
        lambda: model.weight.data.mul_(2),
        lambda: setattr(model, "weight", nn.Parameter(torch.randn(6, 5, 3, 3))),
        lambda: setattr(model, "after_var", torch.rand(6) + 0.5),
    ):
        before = entry.weight.clone()
        change()
        weights.refresh(model)
        tensors, *epsilons = described(model, Param("", "bias"), *norms)
        assert_folded(entry, reference_layers.fold(tensors, *epsilons, 6))
        assert not torch.equal(before, entry.weight)


@pytest.mark.parametrize(
    "value",
    [torch.zeros(6, 5, 3, 2), torch.zeros(6, 5, 3, 3).double(), torch.zeros(6, 5, 3, 3).to("meta")],
    ids=["shape", "dtype", "device"],
)
def test_a_tensor_of_another_kind_is_refused_before_anything_is_written(value):
    model, weights = Held((6, 5, 3, 3)), Weights(torch.device("cpu"))
    shape = (6, 5, 3, 3)
    weights.convolution(Param("", "weight"), None, None, None, shape, torch.float32, False)
    weights.allocate()
    weights.refresh(model)
    before = weights.arena.clone()
    model.weight = nn.Parameter(value)
    with pytest.raises(StaleProgram, match="changed its shape or dtype|moved to another device"):
        weights.refresh(model)
    assert torch.equal(weights.arena, before)


@native_only
def test_opcheck_and_bad_tables():
    model, weights = Held((6, 5, 3, 3)), Weights(torch.device("cpu"))
    entry = weights.convolution(
        Param("", "weight"), None, None, None, (6, 5, 3, 3), torch.float32, False
    )
    weights.allocate()
    weights.refresh(model)
    table = weights.buffers[1]
    opcheck(torch.ops.fastard.fold_bn_, (weights.arena, table), test_utils="test_schema")
    for wrong in (table[:, :-1].contiguous(), table.int(), table[0], table.repeat(1, 2)[:, ::2]):
        with pytest.raises(Exception, match="table must be contiguous int64") as caught:
            torch.ops.fastard.fold_bn_(weights.arena, wrong)
        assert len(str(caught.value).strip().splitlines()) == 1
    with pytest.raises(Exception, match="arena must be contiguous"):
        torch.ops.fastard.fold_bn_(weights.arena[::2], table)
    torch.testing.assert_close(entry.weight, model.weight.detach())
