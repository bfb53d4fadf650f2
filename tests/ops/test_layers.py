"""The epilogues forward and backward: kernel, reference and autograd agree, to the last corner."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from fastard import ops, reference_layers
from fastard.ops.layers import CODES
from fastard.reference_layers import ACTIVATIONS
from tests.ops.cases import LAYOUTS, assert_close, laid_out, native_only

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Channels odd, above a chunk of 1,024 values, alone; planes that fill no block; [B, C]; tokens.
SHAPES = [(2, 5, 7, 3), (3, 17, 1, 1), (2, 1, 9, 5), (1, 1030, 2, 2), (2, 16, 33, 31), (7, 13),
          (2, 1027), (3, 5, 11), (1, 3, 2, 3, 2)]  # fmt: skip
FUNCTIONS = {
    "none": lambda v: v, "relu": torch.relu, "relu6": F.relu6, "silu": F.silu, "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"), "hardswish": F.hardswish,
}  # fmt: skip
# Both zeros, the kinks of relu6 and hardswish, where exp overflows, what is no number.
EDGES = [0.0, -0.0, 3.0, -3.0, 6.0, 5.9999995, 1e-30, -1e-30, 20.0, -20.0, 100.0, -100.0, 1e4,
         -1e4]  # fmt: skip
DOUBLE = torch.zeros(2, 5, 3, 4).double()
# Of these the backward pass keeps the input.
KEPT = ["silu", "gelu", "gelu_tanh", "hardswish"]
UNBOUNDED = [float("nan"), float("inf"), -float("inf")]


def inputs(shape, dtype, layout="contiguous", seed=0):
    """x, another of its kind, and scale and shift per channel."""
    g = torch.Generator().manual_seed(seed)
    x, other = (laid_out((torch.randn(shape, generator=g) * 4).to(dtype), layout) for _ in "xo")
    channels = shape[1]
    return x, other, torch.rand(channels, generator=g) + 0.5, torch.randn(channels, generator=g)


def per_channel(values, like):
    return values.double().view(1, -1, *[1] * (like.dim() - 2))


def exact_epilogue(x, scale, shift, other, act):
    v = x.double()
    v = v if scale is None else v * per_channel(scale, x)
    v = v if shift is None else v + per_channel(shift, x)
    return FUNCTIONS[act](v if other is None else v + other.double())


def exact_backward(grad, saved, scale, residual, act):
    """By autograd at the activation's input; for relu and relu6 its output serves as well, but
    where rounding brought it onto the kink."""
    v = saved.double().requires_grad_()
    (g,) = torch.autograd.grad(FUNCTIONS[act](v), v, grad.double())
    g = g if scale is None else g * per_channel(scale, grad)
    return g if residual is None else g + residual.double()


def cases(shape):
    for layout, *given in itertools.product(LAYOUTS, (False, True), (False, True), (False, True)):
        if layout == "contiguous" or len(shape) == 4:
            yield layout, *given


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_epilogue(act, dtype, either, poisoned):
    for shape in SHAPES:
        for layout, scaled, shifted, added in cases(shape):
            x, other, scale, shift = inputs(shape, dtype, layout)
            given = (scale if scaled else None, shift if shifted else None,
                     other if added else None)  # fmt: skip
            y = ops.epilogue(x, *given, act)
            assert y.dtype == dtype and y.stride() == x.stride()
            plain = reference_layers.epilogue(x, *given, act)
            assert_close(y, exact_epilogue(x, *given, act), plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_epilogue_backward(act, dtype, either, poisoned):
    for shape in SHAPES:
        for layout, scaled, added, saves in cases(shape):
            x, grad, scale, _ = inputs(shape, dtype, layout)
            residual = inputs(shape, dtype, layout, seed=1)[0] if added else None
            saved = FUNCTIONS[act](x) if act in ("relu", "relu6") else x
            if act == "none" and not saves:
                saved = None
            given = (saved, scale if scaled else None, residual, act)
            dx = ops.epilogue_backward(grad, *given)
            assert dx.dtype == dtype and dx.stride() == x.stride()
            wanted = exact_backward(grad, x, scale if scaled else None, residual, act)
            assert_close(dx, wanted, reference_layers.epilogue_backward(grad, *given))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_edges(act, dtype, either):
    """Zeros of both signs, kinks, infinities and NaN: as torch's own function and its autograd."""
    # torch's own gelu(inf) is NaN, and so is every slope at an infinity but that of the ReLUs.
    values = EDGES + (UNBOUNDED[:1] if act == "gelu" else UNBOUNDED)
    # 19 values behind each, so that vector and remainder loops both meet them.
    x = torch.tensor(values).to(dtype).repeat_interleave(19)
    y, wanted = ops.epilogue(x, act=act), FUNCTIONS[act](x.float())
    torch.testing.assert_close(y.float(), wanted.to(dtype).float(), equal_nan=True)
    finite = torch.tensor(EDGES).to(dtype).repeat_interleave(19)
    leaf = finite.float().requires_grad_()
    made = FUNCTIONS[act](leaf)
    (wanted,) = torch.autograd.grad(made, leaf, torch.full_like(made, 3.0))
    saved = made.detach().to(dtype) if act in ("relu", "relu6") else finite
    dx = ops.epilogue_backward(torch.full_like(finite, 3.0), saved, act=act)
    torch.testing.assert_close(dx.float(), wanted.to(dtype).float())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("act", KEPT)
def test_errors_beside_torchs(act, dtype, either):
    """Of fp64, at most twice PyTorch's own error in the dtype, at worst and on average."""
    x = torch.cat([torch.linspace(-14, 14, 20011), torch.randn(9999) * 2]).to(dtype)
    grad = torch.randn(len(x)).to(dtype)
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    plain, wanted = FUNCTIONS[act](leaf), FUNCTIONS[act](exact)
    pairs = (
        (ops.epilogue(x, act=act), plain, wanted),
        (ops.epilogue_backward(grad, x, act=act), *(
            torch.autograd.grad(y, v, grad.to(y.dtype))[0]
            for y, v in ((plain, leaf), (wanted, exact)))),
    )  # fmt: skip
    for got, own, true in pairs:
        ours, torchs = ((v.detach().double() - true).abs() for v in (got, own))
        assert ours.max() <= 2 * torchs.max() and ours.mean() <= 2 * torchs.mean()


@native_only
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("act", ACTIVATIONS[1:])
def test_far_out(act, dtype):
    """Any finite value: the function's limits, of the right sign, and slopes 0 or 1; torch's own
    overflow from 1e19 on."""
    most = torch.finfo(dtype).max
    x = torch.tensor([1e4, 6e4, 1e19, 1e20, 1e30, most]).clamp(max=most).to(dtype).repeat(17)
    one, six = torch.ones_like(x), torch.full_like(x, 6)
    for side in (x, -x):
        y = ops.epilogue(side, act=act)
        wanted = x if act != "relu6" else six
        assert torch.equal(y, wanted if side is x else torch.zeros_like(x))
        assert act not in KEPT or torch.equal(y.signbit(), side.signbit())
        saved = y if act in ("relu", "relu6") else side
        dx = ops.epilogue_backward(one, saved, act=act)
        assert torch.equal(dx, one if side is x and act != "relu6" else torch.zeros_like(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("act", KEPT[:3])
def test_nan_stays(act, dtype, either):
    x = torch.full((37,), float("nan"), dtype=dtype)
    assert ops.epilogue(x, act=act).isnan().all()
    assert ops.epilogue_backward(torch.ones_like(x), x, act=act).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("act", ACTIVATIONS[1:])
def test_the_bias_is_added_again(act, dtype, either, poisoned):
    """What is kept is the epilogue's own input; two gradients meet and a third is added behind."""
    for shape in SHAPES:
        for layout, scaled, twice, wider in cases(shape):
            x, grad, scale, shift = inputs(shape, dtype, layout)
            extra, residual = (inputs(shape, dtype, layout, seed)[0] for seed in (1, 2))
            grad = grad.float() if wider else grad
            given = (x, scale if scaled else None, residual, act)
            more = (shift, extra if twice else None)
            plain = reference_layers.epilogue_backward(grad, *given, *more)
            dx = ops.epilogue_backward(grad, *given, None, *more)
            assert dx.dtype == dtype and dx.stride() == x.stride()
            leaf = x.double().requires_grad_()
            y = exact_epilogue(leaf, given[1], shift, None, act)
            behind = grad.double() + extra.double() if twice else grad.double()
            (wanted,) = torch.autograd.grad(y, leaf, behind)
            v = exact_epilogue(x, given[1], shift, None, "none")
            # Rounding may take either side of a kink.
            near = torch.stack([(v - kink).abs() for kink in (0, 3, -3, 6)]).amin(0) < 1e-4
            dx, plain = (torch.where(near, 0, t) for t in (dx, plain))
            assert_close(dx, torch.where(near, 0, wanted + residual.double()), plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("act", KEPT)
def test_what_went_in_is_kept(act, dtype, either, poisoned):
    for shape in SHAPES:
        for layout, scaled, shifted, in_place in cases(shape):
            x, other, scale, shift = inputs(shape, dtype, layout)
            given = (scale if scaled else None, shift if shifted else None, other)
            wanted, sums = ops.epilogue(x, *given, act), ops.epilogue(x, *given)
            pre = x.clone() if in_place else torch.empty_like(x)
            y = ops.epilogue(pre if in_place else x, *given, act, pre=pre)
            assert torch.equal(y, wanted) and torch.equal(pre, sums)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("act", ["relu", "relu6"])
def test_masks_select(act, dtype, scaled, either):
    """What is masked is 0 whatever it was; a NaN output lets nothing through."""
    saved = torch.tensor([float("nan"), -float("nan"), float("inf"), -0.0, 0.0, 6.0, 1.0]).to(dtype)
    saved, grad = saved.repeat(11)[:, None], torch.full((77, 1), float("nan"), dtype=dtype)
    grad[::2] = -float("inf")
    dx = ops.epilogue_backward(grad, saved, torch.ones(1) if scaled else None, act=act)
    passes = torch.tensor([False, False, act == "relu", False, False, act == "relu", True])
    wanted = torch.where(passes.repeat(11)[:, None], grad, torch.zeros_like(grad))
    torch.testing.assert_close(dx, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_results_may_overwrite_their_operands(act, dtype, either):
    x, other, scale, shift = inputs((2, 5, 9, 9), dtype, "channels_last")
    wanted = ops.epilogue(x, scale, shift, other, act)
    for target in ("x", "other"):
        own = {"x": x.clone(), "other": other.clone()}
        y = ops.epilogue(own["x"], scale, shift, own["other"], act, out=own[target])
        assert y is own[target] and torch.equal(y, wanted)
    wanted = ops.epilogue_backward(x, other, scale, x, act)
    for target in ("grad", "residual"):
        own = {"grad": x.clone(), "residual": x.clone()}
        dx = ops.epilogue_backward(own["grad"], other, scale, own["residual"], act, own[target])
        assert dx is own[target] and torch.equal(dx, wanted)
    wanted = ops.epilogue_backward(x, other, scale, x, act, shift=shift, extra=other)
    for target in ("grad", "residual", "extra"):
        own = {"grad": x.clone(), "residual": x.clone(), "extra": other.clone()}
        dx = ops.epilogue_backward(
            own["grad"], other, scale, own["residual"], act, own[target], shift, own["extra"]
        )
        assert dx is own[target] and torch.equal(dx, wanted)


def test_other_layouts_are_followed_or_copied(either):
    x, other, scale, shift = inputs((2, 6, 8, 10), torch.float32)
    last = torch.channels_last
    for a, b in ((x.contiguous(memory_format=last), other),
                 (x, other.contiguous(memory_format=last)),
                 (x.transpose(2, 3).contiguous().transpose(2, 3), other),
                 (x.repeat(1, 2, 1, 1)[:, :6], other.repeat(2, 1, 1, 1)[2:]),
                 (x.expand(2, 6, 8, 10), other[:, :, :1].expand(-1, -1, 8, -1))):  # fmt: skip
        exact = exact_epilogue(a, scale, shift, b, "silu")
        assert_close(ops.epilogue(a, scale, shift, b, "silu"), exact)
        wanted = exact_backward(a, other, scale, b, "silu")
        assert_close(ops.epilogue_backward(a, other, scale, b, "silu"), wanted)


def test_unaligned_views_and_their_neighbours(either):
    for dtype in DTYPES:
        held = torch.full((2 * 5 * 7 + 2,), 9.0, dtype=dtype)
        out = held[1:-1].view(2, 5, 7)
        x, other, scale, shift = inputs((2, 5, 7), dtype)
        wanted = ops.epilogue(x, scale, shift, other, "relu")
        assert torch.equal(ops.epilogue(x, scale, shift, other, "relu", out=out), wanted)
        assert held[0] == 9 and held[-1] == 9


def test_empty_batches(either):
    for shape in ((0, 5, 4, 4), (0, 7), (0, 3, 5)):
        x = torch.empty(shape)
        channels = torch.ones(shape[1])
        assert ops.epilogue(x, channels, channels, x, "gelu").shape == shape
        assert ops.epilogue_backward(x, x, channels, x, "relu").shape == shape
        assert ops.epilogue(x, None, channels, x, "silu", pre=x).shape == shape
        dx = ops.epilogue_backward(x, x.half(), None, None, "silu", shift=channels, extra=x.half())
        assert dx.shape == shape and dx.dtype == torch.float16


@native_only
def test_no_channels():
    """In a process of its own: a division by zero would end this one."""
    code = "import torch; from fastard import ops; ops.epilogue(torch.empty(2, 0, 3, 3))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.returncode


@native_only
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_opcheck(act):
    x, other, scale, shift = inputs((2, 5, 3, 4), torch.float32)
    code, out = CODES[act], torch.empty_like(x)
    opcheck(torch.ops.fastard.epilogue, (x, scale, shift, other, code, out))
    opcheck(torch.ops.fastard.epilogue, (x, None, None, None, code, out))
    opcheck(torch.ops.fastard.epilogue, (x, None, None, other, code, out, torch.empty_like(x)))
    given = (x, other, scale, other, code, out)
    opcheck(torch.ops.fastard.epilogue_backward, given)
    opcheck(torch.ops.fastard.epilogue_backward, (*given, shift, other))


@native_only
@pytest.mark.parametrize(
    "change, match",
    [
        ({"other": torch.zeros(2, 5, 3)}, "other must have x's shape and layout"),
        ({"other": torch.zeros(2, 5, 4, 3).mT}, "other must have x's shape and layout"),
        ({"other": torch.zeros(2, 5, 3, 4).half()}, "other must have x's dtype"),
        ({"out": torch.zeros(2, 5, 3, 4).half()}, "out must have x's dtype"),
        ({"out": torch.zeros(1, 5, 3, 4)}, "out must have x's shape and layout"),
        ({"scale": torch.ones(4)}, "scale must be one float32 per channel"),
        ({"scale": torch.ones(10)[::2]}, "scale must be one float32 per channel"),
        ({"shift": torch.ones(5).double()}, "shift must be one float32 per channel"),
        ({"pre": torch.zeros(2, 5, 3, 4).half()}, "pre must have x's dtype"),
        ({"pre": torch.zeros(2, 5, 4, 3).mT}, "pre must have x's shape and layout"),
        ({"act": 7}, "act is not a known code"),
        ({"act": -1}, "act is not a known code"),
        ({"x": DOUBLE, "other": None, "out": DOUBLE.clone()},
         "x must be float32, float16 or bfloat16"),
        ({"x": torch.zeros(2, 5, 3, 8)[..., ::2]}, "x must be contiguous or channels_last"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(change, match):
    given = {
        "x": torch.zeros(2, 5, 3, 4), "scale": torch.ones(5), "shift": torch.ones(5),
        "other": torch.zeros(2, 5, 3, 4), "act": 1, "out": torch.full((2, 5, 3, 4), 8.0),
    } | change  # fmt: skip
    before = given["out"].clone()
    with pytest.raises(Exception, match=match) as caught:
        torch.ops.fastard.epilogue(*given.values())
    assert len(str(caught.value).strip().splitlines()) == 1
    assert torch.equal(given["out"], before)


@native_only
def test_a_mask_needs_what_it_is_made_of():
    x = torch.zeros(2, 3)
    with pytest.raises(Exception, match="backward needs saved"):
        torch.ops.fastard.epilogue_backward(x, None, None, None, 1, torch.empty_like(x))


@native_only
@pytest.mark.parametrize(
    "change, match",
    [
        ({"extra": torch.zeros(2, 3)}, "extra must have x's dtype"),
        ({"saved": torch.zeros(2, 3)}, "saved must have x's dtype"),
        ({"residual": torch.zeros(2, 4).half()}, "residual must have x's shape and layout"),
        ({"out": torch.zeros(3, 3).half()}, "out must have x's shape and layout"),
        ({"out": DOUBLE[:, :3, 0, 0].contiguous()}, "out must be float32, float16 or bfloat16"),
        ({"grad": torch.zeros(2, 3).bfloat16()}, "out must have x's dtype"),
        ({"shift": torch.ones(2)}, "shift must be one float32 per channel"),
    ],
)
def test_bad_gradients_are_refused_in_one_sentence(change, match):
    half = torch.zeros(2, 3).half()
    given = {
        "grad": half.float(), "saved": half, "scale": None, "residual": half, "act": 3,
        "out": half.clone(), "shift": torch.ones(3), "extra": half,
    } | change  # fmt: skip
    with pytest.raises(Exception, match=match) as caught:
        torch.ops.fastard.epilogue_backward(*given.values())
    assert len(str(caught.value).strip().splitlines()) == 1
