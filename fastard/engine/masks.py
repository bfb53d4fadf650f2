"""What a backward pass keeps of an activation, and the activation itself.

Of a ReLU a bit a value where there is a kernel, else the output; of the others their input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastard import ops
from fastard.engine.values import Gradients

MASKED = ("relu", "relu6")


class BitMask:
    """A bit a value, in the output's memory order; the output itself is let go."""

    def __init__(self, output: Tensor, act: str) -> None:
        self.shape, self.stride, self.dtype = output.shape, output.stride(), output.dtype
        self.bits = ops.layers.make_bits(output, act)

    def apply(self, grad: Tensor, extra: Tensor | None, owned: bool) -> Tensor:
        """The masked sum of grad and extra, in grad's own buffer where it is `owned`."""
        grad, fits = self._laid_out(grad)
        extra = None if extra is None else self._laid_out(extra)[0]
        return ops.layers.apply_bits(grad, self.bits, extra, grad if owned or not fits else None)

    def _laid_out(self, t: Tensor) -> tuple[Tensor, bool]:
        if t.dtype == self.dtype and t.stride() == self.stride:
            return t, True
        like = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=t.device)
        return like.copy_(t), False


class OutputMask:
    """The output is kept; it says where a gradient passes."""

    def __init__(self, output: Tensor, act: str) -> None:
        self.output, self.act, self.shape = output, act, output.shape

    def apply(self, grad: Tensor, extra: Tensor | None, owned: bool) -> Tensor:
        """The masked sum of grad and extra, in grad's own buffer where it is `owned`."""
        if extra is not None:
            grad, owned = grad + extra, True
        fits = owned and grad.dtype == self.output.dtype and grad.stride() == self.output.stride()
        grad = grad.to(self.output.dtype)
        return ops.epilogue_backward(grad, self.output, act=self.act, out=grad if fits else None)


class InputSlope:
    """The activation's input is kept, or that input without the `shift` per channel."""

    def __init__(self, saved: Tensor, act: str, shift: Tensor | None = None) -> None:
        self.saved, self.act, self.shift, self.shape = saved, act, shift, saved.shape

    def apply(self, grad: Tensor, extra: Tensor | None, owned: bool) -> Tensor:
        """The gradient before the activation for grad + extra behind it, in grad's own buffer where
        it is `owned`."""
        into = grad if owned else None
        return ops.epilogue_backward(
            grad, self.saved, act=self.act, out=into, shift=self.shift, extra=extra)  # fmt: skip


Mask = BitMask | OutputMask | InputSlope


def taken(grads: Gradients, value: int, mask: Mask | None) -> tuple[Tensor | None, bool]:
    """A value's whole gradient, masked if it has a mask, and whether its buffer may be written."""
    if mask is None:
        return grads.take(value)
    grad, extra, owned = grads.take_pair(value)
    if grad is None:
        return None, False
    shape = grad.shape
    if shape == mask.shape:
        return mask.apply(grad, extra, owned), True
    # A linear layer's tokens lie flat in its mask.
    extra = None if extra is None else extra.reshape(mask.shape)
    return mask.apply(grad.reshape(mask.shape), extra, owned).view(shape), True


def mask_of(output: Tensor, act: str) -> Mask:
    """The mask of what `act` ("relu" or "relu6") made."""
    half_or_full = output.dtype in (torch.float32, torch.bfloat16)
    if half_or_full and ops.offered("make_bits", output.device.type):
        return BitMask(output, act)
    return OutputMask(output, act)


def finished(
    z: Tensor, shift: Tensor | None, other: Tensor | None, act: str, keep: bool
) -> tuple[Tensor, Mask | None]:
    """act(z + shift + other) and, to `keep` for the backward pass, how a gradient passes it.

    z is the program's own buffer; the result or what must be kept is written there.
    """
    z = ops.layers.dense(z)
    if act == "none" and shift is None and other is None:
        return z, None
    if act == "none" or act in MASKED or not keep:
        y = ops.epilogue(z, None, shift, other, act, out=z)
        return y, mask_of(y, act) if keep and act != "none" else None
    if other is None:
        # To add the shift again costs no traffic; to write the sum down would.
        return ops.epilogue(z, None, shift, act=act), InputSlope(z, act, shift)
    return ops.epilogue(z, None, shift, other, act, pre=z), InputSlope(z, act)
