"""The engine's operators: folding, epilogues and their backward passes."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from fastard import reference_layers
from fastard.ops._backend import implementation
from fastard.reference_layers import ACTIVATIONS

CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
# Columns of fold_bn_'s table.
POINTERS, TYPES, SHAPE, STRIDES, EPSILONS, OFFSETS, DTYPE, LAST = (
    slice(0, 10), slice(10, 20), slice(20, 24), slice(24, 28), slice(28, 30), slice(30, 33), 33,
    34,
)  # fmt: skip
# In the order of their codes.
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def fold_bn_(arena: Tensor, table: Tensor, tensors: Sequence[Tensor]) -> None:
    """Writes every layer's folded weight, bias and scale into `arena`, in one launch.

    Equivalent to, a layer: ``s = gain / (var + eps).sqrt(); weight * s[:, None, None, None];
    shift + (bias - mean) * s``

    Args:
        arena: uint8, mutated.
        table: int64 [layers, 35] on the arena's device; `engine.weights` says what it holds.
        tensors: the tensors that the table points into, in the table's order.
    """
    operator = implementation("fold_bn_", arena)
    if operator is not None:
        operator.default(arena, table)
        return
    _fold_reference(arena, table.tolist(), list(tensors))


def _fold_reference(arena: Tensor, table: list[list[int]], tensors: list[Tensor]) -> None:
    left = iter(tensors)
    for row in table:
        own = [next(left) if pointer else None for pointer in row[POINTERS]]
        epsilons = [struct.unpack("<d", struct.pack("<q", v))[0] for v in row[EPSILONS]]
        after, before = epsilons
        weight, bias, scale = reference_layers.fold(own, after, before, row[SHAPE][0])
        w_at, bias_at, scale_at = row[OFFSETS]
        dtype, last = DTYPES[row[DTYPE]], bool(row[LAST])
        for value, at, kind in (
            (weight, w_at, dtype), (bias, bias_at, torch.float32),
            (scale, scale_at, torch.float32),
        ):  # fmt: skip
            if at < 0 or value is None:
                continue
            if last and value.dim() == 4:
                value = value.permute(0, 2, 3, 1)
            raw = value.to(kind).contiguous().view(-1).view(torch.uint8)
            arena[at : at + raw.numel()].copy_(raw)


def _dense(t: Tensor, like: Tensor, wider: bool = False) -> Tensor:
    """t in like's layout and dtype; with `wider` it may stay in fp32."""
    if t.stride() == like.stride() and (
        t.dtype == like.dtype or wider and t.dtype == torch.float32
    ):
        return t
    return torch.empty_like(like).copy_(t)


def dense(t: Tensor) -> Tensor:
    """t itself where it is contiguous or channels_last, else a contiguous copy."""
    if t.is_contiguous() or (t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)):
        return t
    return t.contiguous()


def epilogue(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    other: Tensor | None = None,
    act: str = "none",
    out: Tensor | None = None,
    pre: Tensor | None = None,
) -> Tensor:
    """act(x * scale + shift + other), scale and shift fp32 per channel; `out` may be x.

    `pre`, which may be x too, is overwritten with what went into the activation.
    """
    operator = implementation("epilogue", x)
    if operator is None:
        value = reference_layers.epilogue(x, scale, shift, other, act)
        if pre is not None:
            pre.copy_(reference_layers.summed(x, scale, shift, other))
        return value if out is None else out.copy_(value)
    x = dense(x)
    out = torch.empty_like(x) if out is None else out
    other = None if other is None else _dense(other, x)
    operator.default(x, scale, shift, other, CODES[act], out, pre)
    return out


def epilogue_backward(
    grad: Tensor,
    saved: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    act: str = "none",
    out: Tensor | None = None,
    shift: Tensor | None = None,
    extra: Tensor | None = None,
) -> Tensor:
    """(grad + extra) * act'(v) * scale + residual, in one pass; `out` may be grad, extra or
    residual.

    With a `shift`, `saved` is the epilogue's x and v = saved * scale + shift. Without, it is the
    activation's output for relu and relu6, and v itself for the others. The result has saved's
    dtype; grad may be fp32 beside half precision.
    """
    operator = implementation("epilogue_backward", grad)
    if operator is None:
        value = reference_layers.epilogue_backward(
            grad, saved, scale, residual, act, shift, extra)  # fmt: skip
        return value if out is None else out.copy_(value)
    # The saved tensor's layout is the program's; gradients that came another way follow it.
    like = dense(grad) if saved is None else saved
    moved = _dense(grad, like, wider=True)
    fits = out is not None and out.stride() == like.stride() and out.dtype == like.dtype
    into = out if out is not None and fits else torch.empty_like(like)
    residual, extra = (None if t is None else _dense(t, like) for t in (residual, extra))
    operator.default(moved, saved, scale, residual, CODES[act], into, shift, extra)
    return into


def mask_bytes(channels: int) -> int:
    """Bytes that a pixel's bits take: channels padded to 16."""
    return (channels + 15) // 16 * 2


def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, act: str = "none",
    in_act: str = "none", bits: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """act(depthwise convolution of x + bias), with the bits that its backward pass needs.

    Equivalent to: ``act(F.conv2d(x, w, bias, stride, padding, groups=channels))``, where `weight`
    is w[:, 0] as [kernel, kernel, channels] in fp32 and x is channels_last, fp32 or bf16.

    Returns:
        y, then, with `bits`, one bit a value: where the activation `in_act` that made x let a
        gradient through (None if "none"), and where `act` does.
    """
    b, c, h, w = x.shape
    k = weight.shape[0]
    shape = (b, c, (h + 2 * padding - k) // stride + 1, (w + 2 * padding - k) // stride + 1)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    in_bits = out_bits = None
    if bits and in_act != "none":
        in_bits = x.new_empty(b, h, w, mask_bytes(c), dtype=torch.uint8)
    if bits and act != "none":
        out_bits = x.new_empty(b, shape[2], shape[3], mask_bytes(c), dtype=torch.uint8)
    torch.ops.fastard.depthwise.default(
        x, weight, bias, stride, padding, CODES[act], CODES[in_act], y, in_bits, out_bits
    )  # fmt: skip
    return y, in_bits, out_bits


def depthwise_backward(
    grad: Tensor, weight: Tensor, shape: Sequence[int], stride: int, padding: int,
    out_bits: Tensor | None, in_bits: Tensor | None,
) -> Tensor:  # fmt: skip
    """The gradient in x of `shape`, both activations' masks applied, in one pass."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    dx = torch.empty(
        tuple(shape), dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last
    )  # fmt: skip
    torch.ops.fastard.depthwise_backward.default(
        grad, weight, stride, padding, out_bits, in_bits, dx
    )
    return dx


def make_bits(x: Tensor, act: str) -> Tensor:
    """One bit an element of dense x, in memory order: where relu or relu6 made x and lets a
    gradient through, 0 < x (< 6)."""
    bits = x.new_empty((x.numel() + 15) // 16 * 2, dtype=torch.uint8)
    torch.ops.fastard.make_bits.default(x, CODES[act], bits)
    return bits


def apply_bits(
    grad: Tensor, bits: Tensor, extra: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """grad + extra where the bit is set, else 0; both in the memory order that the bits have.

    `out` may be grad or extra.
    """
    out = torch.empty_like(grad) if out is None else out
    torch.ops.fastard.apply_bits.default(grad, extra, bits, out)
    return out
