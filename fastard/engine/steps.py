"""The program's steps at run time: each reads numbered values, makes one, and goes back."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from fastard import ops
from fastard.engine.layers import Convolution
from fastard.engine.masks import MASKED, Mask, mask_of, taken
from fastard.engine.values import Gradients, dense_like
from fastard.engine.weights import Folded

Values = list[Any]


class Step(Protocol):
    """What a plan runs. `forward` returns what its backward pass needs."""

    reads: list[int]
    makes: list[int]

    def forward(self, values: Values) -> Any: ...

    def backward(self, saved: Any, grads: Gradients, retain: bool) -> None: ...


class ConvolutionStep:
    """act(conv(x) + bias + residual). Of the forward pass only the output is kept, for its mask."""

    def __init__(
        self, kernel: Any, act: str, reads: list[int], makes: int, dtype: torch.dtype
    ) -> None:
        self.kernel, self.act, self.dtype = kernel, act, dtype
        self.reads, self.makes = reads, [makes]
        # Whether the only reader applies the activation's mask.
        self.covered = False

    def forward(self, values: Values) -> tuple[torch.Size, Mask | None]:
        x = values[self.reads[0]].to(self.dtype)
        other = values[self.reads[1]].to(self.dtype) if len(self.reads) > 1 else None
        y = self.kernel.forward(x, other)
        values[self.makes[0]] = y
        masked = self.act != "none" and not self.covered
        return x.shape, (mask_of(y, self.act) if masked else None)

    def backward(
        self, saved: tuple[torch.Size, Mask | None], grads: Gradients, retain: bool
    ) -> None:
        shape, mask = saved
        grad, owned = taken(grads, self.makes[0], mask)
        if grad is None:
            return
        if grad.dtype != self.dtype:
            grad, owned = grad.to(self.dtype), True
        grads.add(self.reads[0], self.kernel.backward(grad, shape), True)
        if len(self.reads) > 1:
            grads.add(self.reads[1], grad, owned)


class LinearStep:
    """x @ W^T + b over the last dimension; the head in fp32 whatever the program's precision."""

    def __init__(self, weights: Folded, reads: list[int], makes: int) -> None:
        self.weights, self.reads, self.makes = weights, reads, [makes]

    def forward(self, values: Values) -> torch.dtype:
        w = self.weights
        assert w.weight is not None
        x = values[self.reads[0]]
        bias = w.bias if w.bias is None or w.dtype == torch.float32 else w.bias.to(w.dtype)
        values[self.makes[0]] = torch.nn.functional.linear(x.to(w.dtype), w.weight, bias)
        return x.dtype

    def backward(self, saved: torch.dtype, grads: Gradients, retain: bool) -> None:
        grad, _ = grads.take(self.makes[0])
        if grad is not None and self.weights.weight is not None:
            dx = torch.matmul(grad.to(self.weights.dtype), self.weights.weight)
            grads.add(self.reads[0], dx.to(saved), True)


class EpilogueStep:
    """act(x * scale + shift), act(a + b) or act(x): one elementwise pass each way."""

    def __init__(self, act: str, reads: list[int], makes: int, weights: Folded | None) -> None:
        self.act, self.weights = act, weights
        self.reads, self.makes = reads, [makes]

    def forward(self, values: Values) -> Mask | Tensor | None:
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
        values[self.makes[0]] = y
        if self.act in MASKED:
            return mask_of(y, self.act)
        return None if self.act == "none" else x

    def backward(self, saved: Mask | Tensor | None, grads: Gradients, retain: bool) -> None:
        mask = None
        if saved is not None and not isinstance(saved, Tensor):
            mask, saved = saved, None
        grad, owned = taken(grads, self.makes[0], mask)
        if grad is None:
            return
        scale = self.weights.scale if self.weights is not None else None
        if saved is not None and grad.dtype != saved.dtype:
            grad, owned = grad.to(saved.dtype), True
        act = self.act if saved is not None else "none"
        a, alone = self.reads[0], len(self.reads) == 1
        if saved is not None or scale is not None:
            residual = grads.buffer(a, grad if saved is None else saved) if alone else None
            into = residual
            if into is None and owned and (saved is None or dense_like(grad, saved)):
                into = grad
            grad = ops.epilogue_backward(grad, saved, scale, residual, act, out=into)
            if residual is not None:
                grads.set(a, grad)
                return
            owned = True
        grads.add(a, grad, owned and alone)
        if not alone:
            # Both operands read one buffer: neither may write it.
            grads.add(self.reads[1], grad, False)


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
        self._filter: Tensor | None = None

    def renewed(self) -> None:
        """The folded weights have changed."""
        assert self.weights.weight is not None
        self._filter = self.weights.weight[:, 0].permute(1, 2, 0).contiguous()

    def forward(self, values: Values) -> tuple[torch.Size, Tensor | None, Tensor | None]:
        x = values[self.reads[0]].to(self.dtype)
        assert self._filter is not None
        layer = self.layer
        y, in_bits, out_bits = ops.layers.depthwise(
            x, self._filter, self.weights.bias, layer.stride[0], layer.padding[0], layer.act,
            self.in_act)  # fmt: skip
        values[self.makes[0]] = y
        return x.shape, in_bits, out_bits

    def backward(
        self, saved: tuple[torch.Size, Tensor | None, Tensor | None], grads: Gradients,
        retain: bool,
    ) -> None:  # fmt: skip
        grad, _ = grads.take(self.makes[0])
        if grad is None:
            return
        assert self._filter is not None
        layer, (shape, in_bits, out_bits) = self.layer, saved
        dx = ops.layers.depthwise_backward(
            grad.to(self.dtype), self._filter, shape, layer.stride[0], layer.padding[0],
            out_bits, in_bits)  # fmt: skip
        grads.add(self.reads[0], dx, True)
