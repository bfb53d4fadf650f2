"""The program's steps at run time: each reads numbered values, makes one, and goes back."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from fastard import ops
from fastard.engine.layers import Convolution
from fastard.engine.masks import MASKED, Mask, finished, mask_of, taken
from fastard.engine.values import Gradients, dense_like
from fastard.engine.weights import Folded

Values = list[Any]
# The input's shape, its mask, the output's, or, for no ReLU, how a gradient passes.
DepthwiseRecord = tuple[torch.Size, Tensor | None, Tensor | None, Mask | None]


class Step(Protocol):
    """What a plan runs. `forward` returns what its backward pass needs, if there will be one."""

    reads: list[int]
    makes: list[int]

    def forward(self, values: Values, keep: bool) -> Any: ...

    def backward(self, saved: Any, grads: Gradients, retain: bool) -> None: ...


class ConvolutionStep:
    """act(conv(x) + bias + residual). The forward pass keeps only what its activation needs."""

    def __init__(
        self, kernel: Any, act: str, reads: list[int], makes: int, dtype: torch.dtype
    ) -> None:
        self.kernel, self.act, self.dtype = kernel, act, dtype
        self.reads, self.makes = reads, [makes]
        # Whether the only reader applies the activation's mask.
        self.covered = False

    def forward(self, values: Values, keep: bool) -> tuple[torch.Size, Mask | None]:
        x = values[self.reads[0]].to(self.dtype)
        other = values[self.reads[1]].to(self.dtype) if len(self.reads) > 1 else None
        values[self.makes[0]], mask = self.kernel.forward(x, other, keep and not self.covered)
        return x.shape, mask

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
    """act(x @ W^T + b + residual) over the last dimension; the head in fp32 whatever the program's
    precision."""

    def __init__(self, weights: Folded, act: str, reads: list[int], makes: int) -> None:
        self.weights, self.act, self.reads, self.makes = weights, act, reads, [makes]

    def forward(self, values: Values, keep: bool) -> tuple[torch.dtype, Mask | None]:
        w, x = self.weights, values[self.reads[0]]
        assert w.weight is not None
        if self.act == "none" and len(self.reads) == 1:
            bias = w.bias if w.bias is None or w.dtype == torch.float32 else w.bias.to(w.dtype)
            values[self.makes[0]] = torch.nn.functional.linear(x.to(w.dtype), w.weight, bias)
            return x.dtype, None
        z = torch.nn.functional.linear(x.to(w.dtype), w.weight)
        # Tokens lie flat, so that the kernel finds the channels in the second dimension.
        flat = z.reshape(-1, z.shape[-1])
        other = None
        if len(self.reads) > 1:
            other = values[self.reads[1]].to(w.dtype).reshape(flat.shape)
        y, mask = finished(flat, w.bias, other, self.act, keep)
        values[self.makes[0]] = y.view(z.shape)
        return x.dtype, mask

    def backward(
        self, saved: tuple[torch.dtype, Mask | None], grads: Gradients, retain: bool
    ) -> None:
        dtype, mask = saved
        grad, owned = taken(grads, self.makes[0], mask)
        if grad is None or self.weights.weight is None:
            return
        if grad.dtype != self.weights.dtype:
            grad, owned = grad.to(self.weights.dtype), True
        grads.add(self.reads[0], torch.matmul(grad, self.weights.weight).to(dtype), True)
        if len(self.reads) > 1:
            grads.add(self.reads[1], grad, owned)


class EpilogueStep:
    """act(x * scale + shift), act(a + b) or act(x): one elementwise pass each way."""

    def __init__(self, act: str, reads: list[int], makes: int, weights: Folded | None) -> None:
        self.act, self.weights = act, weights
        self.reads, self.makes = reads, [makes]

    def forward(self, values: Values, keep: bool) -> Mask | Tensor | None:
        x = values[self.reads[0]]
        other = values[self.reads[1]] if len(self.reads) > 1 else None
        if other is not None and other.dtype != x.dtype:
            wider = torch.promote_types(other.dtype, x.dtype)
            x, other = x.to(wider), other.to(wider)
        scale = shift = None
        if self.weights is not None:
            scale, shift = self.weights.scale, self.weights.bias
        x = ops.layers.dense(x)
        keep = keep and self.act != "none"
        pre = torch.empty_like(x) if keep and other is not None and self.act not in MASKED else None
        y = ops.epilogue(x, scale, shift, other, self.act, pre=pre)
        values[self.makes[0]] = y
        if keep and self.act in MASKED:
            return mask_of(y, self.act)
        return None if not keep else (x if pre is None else pre)

    def backward(self, saved: Mask | Tensor | None, grads: Gradients, retain: bool) -> None:
        extra = None
        if isinstance(saved, Tensor):
            grad, extra, owned = grads.take_pair(self.makes[0])
        else:
            grad, owned = taken(grads, self.makes[0], saved)
            saved = None
        if grad is None:
            return
        weights = self.weights
        a, alone = self.reads[0], len(self.reads) == 1
        if saved is not None or weights is not None:
            like = grad if saved is None else saved
            residual = grads.buffer(a, like) if alone else None
            into = residual
            if into is None and owned and grad.dtype == like.dtype and dense_like(grad, like):
                into = grad
            scale = None if weights is None else weights.scale
            shift = None if weights is None or saved is None else weights.bias
            act = "none" if saved is None else self.act
            grad = ops.epilogue_backward(grad, saved, scale, residual, act, into, shift, extra)
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

    def forward(self, values: Values, keep: bool) -> DepthwiseRecord:
        x = values[self.reads[0]].to(self.dtype)
        assert self._filter is not None
        layer, mask = self.layer, None
        inside = layer.act if layer.act in MASKED else "none"
        y, in_bits, out_bits = ops.layers.depthwise(
            x, self._filter, self.weights.bias, layer.stride[0], layer.padding[0], inside,
            self.in_act, keep)  # fmt: skip
        if inside != layer.act:
            y, mask = finished(y, None, None, layer.act, keep)
        values[self.makes[0]] = y
        return x.shape, in_bits, out_bits, mask

    def backward(self, saved: DepthwiseRecord, grads: Gradients, retain: bool) -> None:
        shape, in_bits, out_bits, mask = saved
        grad, _ = taken(grads, self.makes[0], mask)
        if grad is None:
            return
        assert self._filter is not None
        layer = self.layer
        dx = ops.layers.depthwise_backward(
            grad.to(self.dtype), self._filter, shape, layer.stride[0], layer.padding[0],
            out_bits, in_bits)  # fmt: skip
        grads.add(self.reads[0], dx, True)
