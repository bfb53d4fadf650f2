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
UNBOUNDED = [float("nan"), float("inf"), -float("inf")]


@pytest.fixture(params=["kernel", "reference"])
def either(request, monkeypatch):
    """Runs a test with the kernel and with plain PyTorch."""
    if request.param == "reference":
        monkeypatch.setattr(ops.layers, "implementation", lambda op, t: None)
    elif ops.backend("epilogue", "cpu").name != "native":
        pytest.skip(ops.backend("epilogue", "cpu").reason)
    return request.param


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
    opcheck(torch.ops.fastard.epilogue_backward, (x, other, scale, other, code, out))


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
