"""Convolutions forward and in the input, by what the device's library offers."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastard import ops
from fastard.engine.layers import Convolution
from fastard.engine.masks import MASKED, Mask, finished, mask_of
from fastard.engine.weights import Folded

_CL = torch.channels_last


class OneDNNOps(NamedTuple):
    """torch's private operators."""

    pointwise: Any
    binary: Any
    transposed: Any
    pack: Any
    pack_back: Any


def onednn_ops() -> OneDNNOps:
    """Looks the operators up; AttributeError where this torch has not got them."""
    space = torch.ops.mkldnn
    return OneDNNOps(
        space._convolution_pointwise.default, space._convolution_pointwise.binary,
        space._convolution_transpose_pointwise.default,
        space._reorder_convolution_weight.default,
        space._reorder_convolution_transpose_weight.default,
    )  # fmt: skip


@functools.cache
def onednn() -> tuple[bool, str]:
    """Whether torch's private oneDNN convolutions with fused epilogues work here."""
    if not torch.backends.mkldnn.is_available():
        return False, "torch was built without oneDNN"
    try:
        found = onednn_ops()
        x, w = torch.ones(1, 16, 4, 4), torch.ones(16, 16, 1, 1)
        one: list[Any] = [[0, 0], [1, 1], [1, 1], 1]
        relu = found.pointwise(x, w, -17 * torch.ones(16), *one, "relu", [], None)
        capped = found.pointwise(x, w, None, *one, "hardtanh", [0.0, 6.0], None)
        summed = found.binary(x, x, w, None, *one, "add", 1.0, "relu", [], None)
        packed = found.pack(w, *one, [1, 16, 4, 4])
        again = found.pointwise(x, packed, None, *one, "none", [], None)
        back = [[0, 0], [0, 0], [1, 1], [1, 1], 1]
        packed = found.pack_back(w, *back, [1, 16, 4, 4])
        gradient = found.transposed(x, packed, None, *back, "none", [], None)
        values = [float(t.flatten()[0]) for t in (relu, capped, summed, again, gradient)]
    except (AttributeError, RuntimeError, TypeError) as error:
        return False, f"torch's fused oneDNN convolution refused: {str(error).splitlines()[0]}"
    if values != [0.0, 6.0, 17.0, 16.0, 16.0]:
        return False, f"torch's fused oneDNN convolution is wrong here: {values}"
    return True, "oneDNN convolutions with fused epilogues"


# How oneDNN calls the activations: an attribute, its numbers, an algorithm.
ATTRIBUTES: dict[str, tuple[str, list[float], str | None]] = {
    "none": ("none", [], None), "relu": ("relu", [], None), "relu6": ("hardtanh", [0.0, 6.0], None),
    "silu": ("swish", [], None), "gelu": ("gelu", [], "none"), "gelu_tanh": ("gelu", [], "tanh"),
    "hardswish": ("hardswish", [], None),
}  # fmt: skip


@functools.cache
def refused_acts() -> dict[str, str]:
    """The activations that those convolutions do not take in, or get wrong, and why."""
    z = torch.tensor([-1e4, -90.0, -20.0, -3.0, -1.0, -0.01, 0.0, 0.01, 1.0, 3.0, 20.0, 1e4])
    x = z.view(1, 1, 1, -1).repeat(1, 16, 1, 1).contiguous(memory_format=_CL)
    one: list[Any] = [torch.eye(16)[:, :, None, None], None, [0, 0], [1, 1], [1, 1], 1]
    refused: dict[str, str] = {}
    for act, attribute in ATTRIBUTES.items():
        try:
            y = onednn_ops().pointwise(x, *one, *attribute)[0, 5, 0]
        except RuntimeError as error:
            refused[act] = str(error).strip().splitlines()[0]
            continue
        if not torch.allclose(y, ops.epilogue(z, act=act), rtol=1e-5, atol=1e-6):
            refused[act] = f"wrong here: {y.tolist()}"
    return refused


class OneDNN:
    """channels_last convolutions with bias, residual and activation inside, by prepacked weights;
    the input gradient is the transposed convolution with the same weight."""

    def __init__(self, layer: Convolution, weights: Folded) -> None:
        self.layer, self.weights = layer, weights
        self.ops = onednn_ops()
        self.sizes = [list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups]
        # Why the sum is a pass of its own, where oneDNN does not take it in.
        self.refused: str | None = None
        self.packed: Tensor | None = None
        self.packed_back: dict[tuple[int, ...], Tensor] = {}

    def renewed(self) -> None:
        """The folded weights have changed."""
        self.packed, self.packed_back = None, {}

    def forward(self, x: Tensor, other: Tensor | None, keep: bool) -> tuple[Tensor, Mask | None]:
        """The layer's output and, to `keep`, how a gradient passes its activation."""
        layer, w = self.layer, self.weights
        x = x.contiguous(memory_format=_CL)
        packed = self.packed  # another thread may renew it meanwhile
        if packed is None:
            packed = self.packed = self.ops.pack(w.weight, *self.sizes, list(x.shape))
        if other is not None:
            other = other.contiguous(memory_format=_CL)
            if self.refused is None:
                try:
                    return self._summed(x, other, packed, keep)
                except RuntimeError as error:  # some shapes have no such kernel in bf16
                    self.refused = str(error).strip().splitlines()[0]
        # What is not masked needs its activation's input kept: in the convolution it would be lost.
        lost = keep and layer.act not in (*MASKED, "none")
        fused = other is None and not lost and layer.act not in refused_acts()
        y = self.ops.pointwise(
            x, packed, w.bias, *self.sizes, *(ATTRIBUTES[layer.act if fused else "none"])
        )
        if fused:
            return y, mask_of(y, layer.act) if keep and layer.act != "none" else None
        return finished(y, None, other, layer.act, keep)

    def _summed(
        self, x: Tensor, other: Tensor, packed: Tensor, keep: bool
    ) -> tuple[Tensor, Mask | None]:
        layer, w = self.layer, self.weights
        unary = "relu" if layer.act == "relu" else None
        # This op takes no fp32 bias beside bf16 tensors.
        bias = w.bias if w.bias is None else w.bias.to(x.dtype)
        y = self.ops.binary(
            x, other, packed, bias, *self.sizes, "add", 1.0, unary, [], None
        )  # fmt: skip
        if unary is not None:
            return y, mask_of(y, layer.act) if keep else None
        return finished(y, None, None, layer.act, keep)

    def backward(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """The gradient in x."""
        layer, grad = self.layer, grad.contiguous(memory_format=_CL)
        padding, stride, dilation, groups = self.sizes
        # What the stride left over at the far edges.
        rest = tuple(
            shape[2 + d] - ((grad.shape[2 + d] - 1) * layer.stride[d] - 2 * layer.padding[d]
                            + layer.dilation[d] * (self.weights.shape[2 + d] - 1) + 1)
            for d in (0, 1)
        )  # fmt: skip
        known = self.packed_back
        packed = known.get(rest)
        if packed is None:
            packed = known[rest] = self.ops.pack_back(
                self.weights.weight, padding, list(rest), stride, dilation, groups,
                list(grad.shape))  # fmt: skip
        return self.ops.transposed(
            grad, packed, None, padding, list(rest), stride, dilation, groups, "none", [], None
        )  # fmt: skip


class Aten:
    """The library's convolution, then our epilogue kernel."""

    def __init__(self, layer: Convolution, weights: Folded) -> None:
        self.layer, self.weights = layer, weights
        self.format = _CL if weights.channels_last else torch.contiguous_format

    def renewed(self) -> None:
        """The folded weights have changed; nothing is derived from them."""

    def forward(self, x: Tensor, other: Tensor | None, keep: bool) -> tuple[Tensor, Mask | None]:
        """The layer's output and, to `keep`, how a gradient passes its activation."""
        layer, w = self.layer, self.weights
        y = torch.ops.aten.convolution.default(
            x.contiguous(memory_format=self.format), w.weight, None, layer.stride, layer.padding,
            layer.dilation, False, [0, 0], layer.groups)  # fmt: skip
        return finished(y, w.bias, other, layer.act, keep)

    def backward(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """The gradient in x."""
        grad = grad.contiguous(memory_format=self.format)
        return input_gradient(grad, self.weights.weight, shape, self.layer)


def input_gradient(
    grad: Tensor, weight: Tensor | None, shape: torch.Size, layer: Convolution
) -> Tensor:
    """aten's gradient in the convolution's input, of which only the shape is needed."""
    assert weight is not None
    last = grad.is_contiguous(memory_format=_CL) and not grad.is_contiguous()
    like = torch.empty(
        shape, dtype=grad.dtype, device=grad.device,
        memory_format=_CL if last else torch.contiguous_format)  # fmt: skip
    return torch.ops.aten.convolution_backward.default(
        grad, like, weight, None, layer.stride, layer.padding, layer.dilation, False, [0, 0],
        layer.groups, [True, False, False])[0]  # fmt: skip


def depthwise(layer: Convolution, shape: tuple[int, ...]) -> bool:
    """Whether our own depthwise kernel takes the layer: one square filter a channel."""
    square = shape[2:] == (shape[-1],) * 2 and shape[-1] in (3, 5, 7) and layer.stride[0] in (1, 2)
    even = layer.stride[0] == layer.stride[1] and layer.padding[0] == layer.padding[1]
    return (
        layer.spatial and layer.groups == shape[0] and shape[1] == 1 and shape[0] > 1 and square
        and even and layer.padding[0] < shape[-1] and layer.dilation == (1, 1)
        and not layer.residual and layer.before is None and ops.offered("depthwise", "cpu")
    )  # fmt: skip
