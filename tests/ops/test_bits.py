"""Masks of a bit a value: made from a ReLU's output, applied to sums of gradients."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from fastard.ops.layers import CODES, apply_bits, make_bits
from tests.ops.cases import laid_out, native_only

pytestmark = native_only

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(2, 5, 7, 3), (1, 1, 1, 1), (3, 17), (4, 16, 8, 8), (33,), (0, 5, 4, 4), (2, 3, 1, 31)]
EDGES = [0.0, -0.0, float("nan"), -float("nan"), float("inf"), -float("inf"), 6.0, -1.0, 1e-30,
         5.96875]  # fmt: skip


def made(shape, dtype, layout, act):
    """An activation's output with all that is odd in it, in memory order, and two gradients."""
    g = torch.Generator().manual_seed(0)
    v = torch.randn(shape, generator=g) * 5
    v = v.relu() if act == "relu" else v.clamp(0, 6)
    v.view(-1)[::3] = torch.tensor(EDGES).repeat(v.numel())[: len(v.view(-1)[::3])]
    grads = torch.randn(2, *shape, generator=g)
    return tuple(laid_out(t.to(dtype), layout) for t in (v, grads[0], grads[1]))


def flat(bits, count):
    return torch.stack([(bits >> k) & 1 for k in range(8)], dim=-1).flatten()[:count].bool()


def check(dtype, act):
    for shape in SHAPES:
        for layout in ("contiguous", "channels_last"):
            y, grad, extra = made(shape, dtype, layout, act)
            bits = make_bits(y, act)
            passes = (y > 0) & ((y < 6) if act == "relu6" else ~y.isnan())
            # In memory order.
            memory = torch.as_strided(passes.new_empty(y.numel()), y.shape, y.stride())
            memory.copy_(passes)
            wanted = torch.as_strided(memory, (y.numel(),), (1,))
            seen = flat(bits, y.numel())
            finite = torch.as_strided(y, (y.numel(),), (1,)).isfinite()
            assert torch.equal(seen[finite], wanted[finite])
            assert not seen[torch.as_strided(y, (y.numel(),), (1,)).isnan()].any()
            kept = torch.as_strided(seen.clone(), y.shape, y.stride())
            zero = torch.zeros_like(grad)
            assert torch.equal(apply_bits(grad, bits), torch.where(kept, grad, zero))
            both = torch.where(kept, (grad.float() + extra.float()).to(dtype), zero)
            assert torch.equal(apply_bits(grad, bits, extra), both)
            for target in ("grad", "extra"):
                own = {"grad": grad.clone(), "extra": extra.clone()}
                out = apply_bits(own["grad"], bits, own["extra"], own[target])
                assert out is own[target] and torch.equal(out, both)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("act", ["relu", "relu6"])
def test_bits(act, dtype, poisoned):
    check(dtype, act)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_what_is_masked_is_zero_whatever_it_was(dtype):
    y = torch.tensor([0.0, 1.0]).repeat(40).to(dtype)
    grad = torch.full((80,), float("nan"), dtype=dtype)
    got = apply_bits(grad, make_bits(y, "relu"), torch.full_like(grad, float("inf")))
    assert (got[::2] == 0).all() and got[1::2].isnan().all()


def test_neighbours_are_not_written():
    held, bits = torch.full((35,), 9.0), torch.full((8,), 255, dtype=torch.uint8)
    y = torch.zeros(33)
    torch.ops.fastard.make_bits(y, CODES["relu"], bits[1:7])
    assert bits[0] == 255 and bits[7] == 255 and not flat(bits[1:7], 33).any()
    apply_bits(torch.ones(33), bits[1:7], out=held[1:34])
    assert held[0] == 9 and held[34] == 9 and (held[1:34] == 0).all()


def test_opcheck():
    y, grad, extra = made((2, 5, 7, 3), torch.float32, "contiguous", "relu")
    bits = make_bits(y, "relu")
    opcheck(torch.ops.fastard.make_bits, (y, CODES["relu"], bits))
    opcheck(torch.ops.fastard.apply_bits, (grad, extra, bits, torch.empty_like(grad)))
    opcheck(torch.ops.fastard.apply_bits, (grad, None, bits, torch.empty_like(grad)))


X = torch.zeros(2, 5, 3, 4)
BITS = torch.zeros(16, dtype=torch.uint8)


@pytest.mark.parametrize(
    "op, given, match",
    [
        ("make_bits", (X.half(), 1, BITS), "x must be float32 or bfloat16"),
        ("make_bits", (X[..., ::2], 1, BITS), "x must be contiguous or channels_last"),
        ("make_bits", (X, 3, BITS), "act must be relu or relu6"),
        ("make_bits", (X, 0, BITS), "act must be relu or relu6"),
        ("make_bits", (X, 1, BITS[:-2]), "bits must be uint8"),
        ("make_bits", (X, 1, torch.zeros(16)), "bits must"),
        ("apply_bits", (X, X.bfloat16(), BITS, X.clone()), "extra must have x's dtype"),
        ("apply_bits", (X, None, BITS, torch.zeros(2, 5, 4, 3)), "out must have x's shape"),
        ("apply_bits", (X, None, BITS[::2], X.clone()), "bits must be uint8"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(op, given, match):
    with pytest.raises(Exception, match=match) as caught:
        getattr(torch.ops.fastard, op)(*given)
    assert len(str(caught.value).strip().splitlines()) == 1
