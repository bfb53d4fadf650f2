"""Convolutions forward and in the input, by what the device's library offers."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastard import ops
from fastard.engine.layers import Convolution
from fastard.engine.weights import Folded

_CL = torch.channels_last


@functools.cache
def onednn() -> tuple[bool, str]:
    """Whether torch's private oneDNN convolutions with fused epilogues work here."""
    if not torch.backends.mkldnn.is_available():
        return False, "torch was built without oneDNN"
    try:
        pointwise, binary, into = _onednn_ops()
        x, w = torch.ones(1, 16, 4, 4), torch.ones(16, 16, 1, 1)
        one: list[Any] = [[0, 0], [1, 1], [1, 1], 1]
        relu = pointwise(x, w, -17 * torch.ones(16), *one, "relu", [], None)
        capped = pointwise(x, w, None, *one, "hardtanh", [0.0, 6.0], None)
        summed = binary(x, x, w, None, *one, "add", 1.0, "relu", [], None)
        acc = torch.ones(1, 16, 4, 4)
        into(acc, x, w, None, *one, "add", 1.0, None, [], None)
        packed = torch.ops.mkldnn._reorder_convolution_weight(w, *one, [1, 16, 4, 4])
        again = pointwise(x, packed, None, *one, "none", [], None)
        found = [float(t.flatten()[0]) for t in (relu, capped, summed, acc, again)]
    except (AttributeError, RuntimeError, TypeError) as error:
        return False, f"torch's fused oneDNN convolution refused: {str(error).splitlines()[0]}"
    if found != [0.0, 6.0, 17.0, 17.0, 16.0]:
        return False, f"torch's fused oneDNN convolution is wrong here: {found}"
    return True, "oneDNN convolutions with fused epilogues"


def _onednn_ops() -> tuple[Any, Any, Any]:
    space = torch.ops.mkldnn
    return (
        space._convolution_pointwise.default,
        space._convolution_pointwise.binary,
        space._convolution_pointwise_.binary,
    )


class OneDNN:
    """channels_last convolutions with bias, residual and ReLU inside; an input gradient of stride
    1 is a convolution with the flipped, transposed weight, added in place where one is there."""

    def __init__(self, layer: Convolution, weights: Folded) -> None:
        self.layer, self.weights = layer, weights
        self.pointwise, self.binary, self.into = _onednn_ops()
        self.sizes = [list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups]
        kernel = weights.shape[2:]
        back = [k - 1 - p for k, p in zip(kernel, layer.padding, strict=True)]
        self.back_sizes = [back, [1, 1], [1, 1], 1]
        self.packed: Tensor | None = None
        self.packed_back: Tensor | None = None
        self.input_size: list[int] | None = None
        self.grad_size: list[int] | None = None

    def renewed(self) -> None:
        """The folded weights have changed."""
        self.packed = self.packed_back = None

    def forward(self, x: Tensor, other: Tensor | None) -> Tensor:
        layer, w = self.layer, self.weights
        x = x.contiguous(memory_format=_CL)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(
                w.weight, *self.sizes, list(x.shape))  # fmt: skip
        if other is None:
            attr, scalars = _ATTRIBUTES[layer.act]
            return self.pointwise(x, self.packed, w.bias, *self.sizes, attr, scalars, None)
        other = other.contiguous(memory_format=_CL)
        unary = "relu" if layer.act == "relu" else None
        # This op takes no fp32 bias beside bf16 tensors.
        bias = w.bias if w.bias is None else w.bias.to(x.dtype)
        y = self.binary(
            x, other, self.packed, bias, *self.sizes, "add", 1.0, unary, [], None)  # fmt: skip
        if layer.act not in ("none", "relu"):
            y = ops.epilogue(y, act=layer.act, out=y)
        return y

    def backward(self, grad: Tensor, shape: torch.Size, held: Tensor | None) -> Tensor:
        """The gradient in x; with `held`, added to it in place."""
        layer, w = self.layer, self.weights
        grad = grad.contiguous(memory_format=_CL)
        if w.flipped is None:
            dx = input_gradient(grad, w.weight, shape, layer)
            return dx if held is None else held.add_(dx)
        if self.packed_back is None:
            self.packed_back = torch.ops.mkldnn._reorder_convolution_weight(
                w.flipped, *self.back_sizes, list(grad.shape))  # fmt: skip
        if held is None:
            return self.pointwise(grad, self.packed_back, None, *self.back_sizes, "none", [], None)
        return self.into(
            held, grad, self.packed_back, None, *self.back_sizes, "add", 1.0, None, [], None)  # fmt: skip


_ATTRIBUTES: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []), "relu": ("relu", []), "relu6": ("hardtanh", [0.0, 6.0]),
}  # fmt: skip


class Aten:
    """The library's convolution, then our epilogue kernel."""

    def __init__(self, layer: Convolution, weights: Folded) -> None:
        self.layer, self.weights = layer, weights
        self.format = _CL if weights.channels_last else torch.contiguous_format

    def renewed(self) -> None:
        """The folded weights have changed; nothing is derived from them."""

    def forward(self, x: Tensor, other: Tensor | None) -> Tensor:
        layer, w = self.layer, self.weights
        y = torch.ops.aten.convolution.default(
            x.contiguous(memory_format=self.format), w.weight, None, layer.stride, layer.padding,
            layer.dilation, False, [0, 0], layer.groups)  # fmt: skip
        return ops.epilogue(y, None, w.bias, other, layer.act, out=y)

    def backward(self, grad: Tensor, shape: torch.Size, held: Tensor | None) -> Tensor:
        grad = grad.contiguous(memory_format=self.format)
        dx = input_gradient(grad, self.weights.weight, shape, self.layer)
        return dx if held is None else held.add_(dx)


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


def flips(layer: Convolution, shape: tuple[int, ...]) -> bool:
    """Whether the input gradient is a convolution with the flipped, transposed weight."""
    small = all(p <= k - 1 for p, k in zip(layer.padding, shape[2:], strict=True))
    ones = layer.stride == (1, 1) and layer.dilation == (1, 1) and layer.groups == 1
    return layer.spatial and small and ones


def depthwise(layer: Convolution, shape: tuple[int, ...]) -> bool:
    """Whether our own depthwise kernel takes the layer: one square filter a channel."""
    square = shape[2:] == (shape[-1],) * 2 and shape[-1] in (3, 5, 7) and layer.stride[0] in (1, 2)
    even = layer.stride[0] == layer.stride[1] and layer.padding[0] == layer.padding[1]
    return (
        layer.spatial and layer.groups == shape[0] and shape[1] == 1 and shape[0] > 1 and square
        and even and layer.padding[0] < shape[-1] and layer.dilation == (1, 1)
        and not layer.residual and layer.before is None and is_native_depthwise()
    )  # fmt: skip


def is_native_depthwise() -> bool:
    return ops.backend("depthwise", "cpu").name == "native"
