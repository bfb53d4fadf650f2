"""The program's steps at run time: each reads numbered values, makes one, and goes back."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from fastard import ops
from fastard.engine.layers import Convolution
from fastard.engine.values import Gradients, dense_like
from fastard.engine.weights import Folded

Values = list[Any]


class Step(Protocol):
    """What a plan runs."""

    reads: list[int]
    makes: list[int]

    def forward(self, values: Values) -> None: ...

    def backward(self, grads: Gradients, retain: bool) -> None: ...

    def forget(self) -> None:
        """Lets go of what the backward pass would have needed."""
        ...


class ConvolutionStep:
    """act(conv(x) + bias + residual). Of the forward pass only the output is kept, for its mask."""

    def __init__(
        self, kernel: Any, act: str, reads: list[int], makes: int, dtype: torch.dtype
    ) -> None:
        self.kernel, self.act, self.dtype = kernel, act, dtype
        self.reads, self.makes = reads, [makes]
        # Whether the only reader applies the activation's mask.
        self.covered = False
        self._saved: Tensor | None = None
        self._shape = torch.Size()

    def forward(self, values: Values) -> None:
        x = values[self.reads[0]].to(self.dtype)
        other = values[self.reads[1]].to(self.dtype) if len(self.reads) > 1 else None
        y = self.kernel.forward(x, other)
        self._shape = x.shape
        self._saved = y if self.act != "none" and not self.covered else None
        values[self.makes[0]] = y

    def backward(self, grads: Gradients, retain: bool) -> None:
        grad, owned = grads.take(self.makes[0])
        if grad is None:
            return
        if grad.dtype != self.dtype:
            grad, owned = grad.to(self.dtype), True
        saved = self._saved
        if saved is not None:
            into = grad if owned and dense_like(grad, saved) else None
            grad, owned = ops.epilogue_backward(grad, saved, act=self.act, out=into), True
        x = self.reads[0]
        held, mine = grads.peek(x)
        usable = (
            held is not None and mine and held.dtype == self.dtype
            and held.is_contiguous(memory_format=torch.channels_last)
        )  # fmt: skip
        if usable:
            grads.set(x, self.kernel.backward(grad, self._shape, held))
        else:
            grads.add(x, self.kernel.backward(grad, self._shape, None), True)
        if len(self.reads) > 1:
            grads.add(self.reads[1], grad, owned)

    def forget(self) -> None:
        self._saved = None


class LinearStep:
    """x @ W^T + b over the last dimension; the head in fp32 whatever the program's precision."""

    def __init__(self, weights: Folded, reads: list[int], makes: int) -> None:
        self.weights, self.reads, self.makes = weights, reads, [makes]
        self._dtype = weights.dtype

    def forward(self, values: Values) -> None:
        w = self.weights
        x = values[self.reads[0]]
        self._dtype = x.dtype
        bias = w.bias if w.bias is None or w.dtype == torch.float32 else w.bias.to(w.dtype)
        values[self.makes[0]] = torch.nn.functional.linear(x.to(w.dtype), w.weight, bias)

    def backward(self, grads: Gradients, retain: bool) -> None:
        grad, _ = grads.take(self.makes[0])
        if grad is not None:
            dx = torch.matmul(grad.to(self.weights.dtype), self.weights.weight)
            grads.add(self.reads[0], dx.to(self._dtype), True)

    def forget(self) -> None:
        """Nothing is kept: a linear map's gradient needs no input."""


class EpilogueStep:
    """act(x * scale + shift), act(a + b) or act(x): one elementwise pass each way."""

    def __init__(self, act: str, reads: list[int], makes: int, weights: Folded | None) -> None:
        self.act, self.weights = act, weights
        self.reads, self.makes = reads, [makes]
        self._saved: Tensor | None = None

    def forward(self, values: Values) -> None:
        x = values[self.reads[0]]
        other = values[self.reads[1]] if len(self.reads) > 1 else None
        if other is not None and other.dtype != x.dtype:
            wider = torch.promote_types(other.dtype, x.dtype)
            x, other = x.to(wider), other.to(wider)
        scale = shift = None
        if self.weights is not None:
            scale, shift = self.weights.scale, self.weights.bias
        x = ops.layers.dense(x)
        y = ops.epilogue(x, scale, shift, other, self.act)
        if self.act in ("relu", "relu6"):
            self._saved = y
        elif self.act != "none":
            self._saved = x
        values[self.makes[0]] = y

    def backward(self, grads: Gradients, retain: bool) -> None:
        grad, owned = grads.take(self.makes[0])
        if grad is None:
            return
        saved = self._saved
        scale = self.weights.scale if self.weights is not None else None
        if saved is not None and grad.dtype != saved.dtype:
            grad, owned = grad.to(saved.dtype), True
        a = self.reads[0]
        if saved is not None or scale is not None:
            residual = grads.buffer(a, grad if saved is None else saved)
            into = residual
            if into is None and owned and (saved is None or dense_like(grad, saved)):
                into = grad
            grad = ops.epilogue_backward(grad, saved, scale, residual, self.act, out=into)
            owned = True
            if residual is not None:
                grads.set(a, grad)
            else:
                grads.add(a, grad, len(self.reads) == 1)
        else:
            grads.add(a, grad, owned and len(self.reads) == 1)
        if len(self.reads) > 1:
            # Both operands read one buffer: neither may write it.
            grads.add(self.reads[1], grad, False)

    def forget(self) -> None:
        self._saved = None


class DepthwiseStep:
    """A depthwise convolution with bits for masks: no activation is kept for the backward pass.

    `in_act` is the activation that made the input, if this step is all that reads it: its mask is
    applied here, and `covered` tells the input's own step so.
    """

    def __init__(
        self, layer: Convolution, weights: Folded, reads: list[int], makes: int, in_act: str,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.layer, self.weights, self.in_act, self.dtype = layer, weights, in_act, dtype
        self.reads, self.makes = reads, [makes]
        self._bits: tuple[Tensor | None, Tensor | None] = (None, None)
        self._shape = torch.Size()
        self._filter: Tensor | None = None

    def renewed(self) -> None:
        """The folded weights have changed."""
        assert self.weights.weight is not None
        self._filter = self.weights.weight[:, 0].permute(1, 2, 0).contiguous()

    def forward(self, values: Values) -> None:
        x = values[self.reads[0]].to(self.dtype)
        assert self._filter is not None
        layer = self.layer
        y, *bits = ops.layers.depthwise(
            x, self._filter, self.weights.bias, layer.stride[0], layer.padding[0], layer.act,
            self.in_act)  # fmt: skip
        self._shape, self._bits = x.shape, (bits[0], bits[1])
        values[self.makes[0]] = y

    def backward(self, grads: Gradients, retain: bool) -> None:
        grad, _ = grads.take(self.makes[0])
        if grad is None:
            return
        assert self._filter is not None
        layer, (in_bits, out_bits) = self.layer, self._bits
        dx = ops.layers.depthwise_backward(
            grad.to(self.dtype), self._filter, self._shape, layer.stride[0], layer.padding[0],
            out_bits, in_bits)  # fmt: skip
        grads.add(self.reads[0], dx, True)

    def forget(self) -> None:
        self._bits = (None, None)
