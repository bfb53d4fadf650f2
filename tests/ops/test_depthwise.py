"""The depthwise kernels: values, gradients and mask bits against autograd in fp64."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from fastard import ops
from fastard.ops.layers import CODES, depthwise, depthwise_backward, mask_bytes
from tests.ops.cases import assert_close, native_only

pytestmark = native_only

ACTS = {"none": lambda v: v, "relu": torch.relu, "relu6": F.relu6}
CHANNELS = (1, 3, 16, 17, 96, 144)
# Odd, even, one row, one column, smaller than a filter of 7, wider than a tile.
SIDES = ((5, 7), (8, 8), (1, 9), (6, 1), (3, 2), (4, 13))
# Nearer than this to a kink rounding may take either side.
NEAR = 1e-3


def unpacked(bits: torch.Tensor, channels: int) -> torch.Tensor:
    """[B, H, W, bytes] -> bool [B, C, H, W]."""
    ones = torch.stack([(bits >> k) & 1 for k in range(8)], dim=-1).flatten(3).bool()
    return ones[..., :channels].permute(0, 3, 1, 2)


def passes(v: torch.Tensor, act: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the activation lets a gradient through at v, and where that is beyond doubt."""
    clear = v.abs() > NEAR
    if act == "relu6":
        return (v > 0) & (v < 6), clear & ((v - 6).abs() > NEAR)
    return v > 0, clear


def case(kernel, stride, padding, channels, side, dtype, act, in_act, biased=True, seed=0):
    """Inputs whose x was made by `in_act`, and everything in fp64 by autograd."""
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(2, channels, *side, generator=g) * 4
    x = ACTS[in_act](v).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(kernel, kernel, channels, generator=g)
    bias = torch.randn(channels, generator=g) if biased else None
    leaf = x.double().requires_grad_()
    filters = weight.double().permute(2, 0, 1)[:, None]
    made = F.conv2d(leaf, filters, None if bias is None else bias.double(), stride, padding,
                    groups=channels)  # fmt: skip
    y = ACTS[act](made)
    grad = torch.randn(y.shape, generator=g).to(dtype)
    return x, weight, bias, leaf, made, y, grad


def fits(side, kernel, padding):
    return all(n + 2 * padding >= kernel for n in side)


def sweep(kernel, stride, dtype, channels=CHANNELS, sides=SIDES):
    """Every padding, size and pair of activations meets every other somewhere."""
    pairs = itertools.cycle(itertools.product(ACTS, ACTS))
    for padding, width, side in itertools.product(range(kernel), channels, sides):
        if not fits(side, kernel, padding):
            continue
        for act, in_act in itertools.islice(pairs, 2):
            yield kernel, stride, padding, width, side, dtype, act, in_act


def check(given) -> None:
    kernel, stride, padding, channels, side, dtype, act, in_act = given
    x, weight, bias, leaf, made, y, grad = case(*given, biased=channels != 17)
    shape = (stride, padding)
    out, in_bits, out_bits = depthwise(x, weight, bias, *shape, act, in_act)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    plain = y.to(dtype)
    assert_close(out, y.detach(), plain.detach())
    assert (in_bits is None) == (in_act == "none") and (out_bits is None) == (act == "none")
    through, clear = torch.ones_like(made, dtype=torch.bool), torch.ones_like(made).bool()
    if out_bits is not None:
        wanted, clear = passes(made.detach(), act)
        through = unpacked(out_bits, channels)
        assert torch.equal(through[clear], wanted[clear])
    entered = torch.ones_like(x, dtype=torch.bool)
    if in_bits is not None:
        # Rows that no output reads have no bits.
        last = (made.shape[2] - 1) * stride - padding + kernel
        entered = (leaf > 0) & (leaf < 6) if in_act == "relu6" else leaf > 0
        assert torch.equal(unpacked(in_bits, channels)[:, :, :last], entered[:, :, :last])
    # The kernel's own bits at the output, so that values near a kink count too.
    (wanted,) = torch.autograd.grad(made, leaf, grad.double() * through)
    dx = depthwise_backward(grad, weight, x.shape, *shape, out_bits, in_bits)
    wanted = wanted * entered
    assert dx.dtype == dtype and dx.is_contiguous(memory_format=torch.channels_last)
    assert_close(dx, wanted, wanted.to(dtype))
    again, none, nor = depthwise(x, weight, bias, *shape, act, in_act, bits=False)
    assert none is None and nor is None and torch.equal(again, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_against_autograd(kernel, stride, dtype, poisoned):
    for given in sweep(kernel, stride, dtype):
        check(given)


def test_every_pair_of_activations(poisoned):
    for act, in_act, stride in itertools.product(ACTS, ACTS, (1, 2)):
        check((3, stride, 1, 33, (6, 9), torch.float32, act, in_act))


def test_a_wide_layer_in_several_chunks():
    check((5, 1, 2, 1200, (7, 9), torch.float32, "relu6", "relu6"))
    check((3, 2, 1, 2064, (9, 7), torch.bfloat16, "relu", "none"))


def test_the_neighbours_of_a_view_are_not_written():
    x, weight, bias, *_ = case(3, 1, 1, 5, (4, 5), torch.float32, "relu", "relu")
    wanted, _, wanted_bits = depthwise(x, weight, bias, 1, 1, "relu", "relu")
    held = torch.full((x.numel() + 2,), 9.0)
    y = held[1:-1].view(2, 4, 5, 5).permute(0, 3, 1, 2)
    bits = torch.full((2 * 4 * 5 * mask_bytes(5) + 2,), 255, dtype=torch.uint8)
    inner = bits[1:-1].view(2, 4, 5, -1)
    torch.ops.fastard.depthwise(x, weight, bias, 1, 1, CODES["relu"], 0, y, None, inner)
    assert torch.equal(y, wanted) and torch.equal(inner, wanted_bits)
    assert held[0] == 9 and held[-1] == 9 and bits[0] == 255 and bits[-1] == 255


def test_not_a_number_stays_and_lets_nothing_through():
    x = torch.full((1, 17, 3, 3), float("nan")).contiguous(memory_format=torch.channels_last)
    for act in ("relu", "relu6"):
        y, in_bits, out_bits = depthwise(x, torch.ones(3, 3, 17), None, 1, 1, act, act)
        assert y.isnan().all() and not in_bits.any() and not out_bits.any()


def test_empty_batch_and_layouts():
    weight = torch.ones(3, 3, 4)
    y, in_bits, _ = depthwise(torch.empty(0, 4, 5, 5), weight, None, 2, 1, "relu", "relu")
    assert y.shape == (0, 4, 3, 3) and len(in_bits) == 0
    dx = depthwise_backward(torch.empty(0, 4, 3, 3), weight, (0, 4, 5, 5), 2, 1, None, in_bits)
    assert dx.shape == (0, 4, 5, 5)
    x, weight, bias, _, _, y, grad = case(3, 1, 1, 4, (5, 6), torch.float32, "relu", "none")
    assert_close(depthwise(x.contiguous(), weight, bias, 1, 1, "relu")[0], y.detach())
    wanted = depthwise_backward(grad, weight, x.shape, 1, 1, None, None)
    last = grad.contiguous(memory_format=torch.channels_last)
    assert torch.equal(depthwise_backward(last, weight, x.shape, 1, 1, None, None), wanted)


def test_opcheck():
    x, weight, bias, *_ = case(3, 2, 1, 5, (4, 5), torch.float32, "relu", "relu")
    y, in_bits, out_bits = depthwise(x, weight, bias, 2, 1, "relu", "relu")
    opcheck(torch.ops.fastard.depthwise, (x, weight, bias, 2, 1, 1, 1, y, in_bits, out_bits))
    opcheck(torch.ops.fastard.depthwise, (x, weight, None, 2, 1, 0, 0, y, None, None))
    opcheck(
        torch.ops.fastard.depthwise_backward,
        (y, weight, 2, 1, out_bits, in_bits, torch.empty_like(x)),
    )


LAST = torch.channels_last


@pytest.mark.parametrize(
    "change, match",
    [
        ({"x": torch.zeros(2, 5, 6, 6)}, "images must be channels_last and of one dtype"),
        ({"y": torch.zeros(2, 5, 6, 6)}, "images must be channels_last and of one dtype"),
        ({"y": torch.zeros(2, 5, 6, 6).bfloat16().contiguous(memory_format=LAST)}, "of one dtype"),
        ({"y": torch.zeros(2, 5, 5, 6).contiguous(memory_format=LAST)}, "y's shape does not"),
        ({"weight": torch.zeros(3, 3, 4)}, "weight must be float32"),
        ({"weight": torch.zeros(3, 5, 5)}, "weight must be float32"),
        ({"weight": torch.zeros(3, 3, 5).half()}, "weight must be float32"),
        ({"weight": torch.zeros(3, 3, 1, 5)}, "weight must be float32"),
        ({"weight": torch.zeros(4, 4, 5)}, "kernel must be 3, 5 or 7"),
        ({"stride": 3}, "stride 1 or 2"),
        ({"padding": 3}, "padding below it"),
        ({"padding": -1}, "padding below it"),
        ({"act": 3}, "act must be none, relu or relu6"),
        ({"in_act": 4}, "act must be none, relu or relu6"),
        ({"act": -1}, "act must be none, relu or relu6"),
        ({"bias": torch.zeros(4)}, "bias must be one float32 per channel"),
        ({"in_bits": torch.zeros(2, 6, 6, 1, dtype=torch.uint8)}, "in_bits must be uint8"),
        ({"out_bits": torch.zeros(2, 6, 6, 4, dtype=torch.uint8)}, "out_bits must be uint8"),
        ({"out_bits": torch.zeros(2, 6, 6, 2)}, "out_bits must"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(change, match):
    image = torch.zeros(2, 5, 6, 6).contiguous(memory_format=LAST)
    given = {
        "x": image, "weight": torch.zeros(3, 3, 5), "bias": torch.zeros(5), "stride": 1,
        "padding": 1, "act": 1, "in_act": 1, "y": torch.full_like(image, 8.0), "in_bits": None,
        "out_bits": None,
    } | change  # fmt: skip
    before = given["y"].clone()
    with pytest.raises(Exception, match=match) as caught:
        torch.ops.fastard.depthwise(*given.values())
    assert len(str(caught.value).strip().splitlines()) == 1
    assert torch.equal(given["y"], before)


def test_images_smaller_than_the_filter_are_refused():
    with pytest.raises((RuntimeError, ValueError)):
        depthwise(torch.zeros(1, 4, 2, 2), torch.ones(5, 5, 4), None, 2, 1)
    assert ops.backend("depthwise", "cpu").name == "native"
