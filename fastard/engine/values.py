"""The numbered values of a running program and the gradients that gather on them."""

from __future__ import annotations

import torch
from torch import Tensor


class Gradients:
    """The contributions to each value's gradient, summed in place where a buffer is the program's.

    Two of one dtype stay apart until the gradient is taken: a mask adds them on its way.
    """

    def __init__(self, count: int) -> None:
        self._parts: list[list[tuple[Tensor, bool]]] = [[] for _ in range(count)]

    def add(self, value: int, grad: Tensor | None, owned: bool) -> None:
        """Adds a contribution; `owned` says that nobody else reads this buffer."""
        if grad is None:
            return
        parts = self._parts[value]
        parts.append((grad, owned))
        if len(parts) > 2 or parts[0][0].dtype != grad.dtype:
            parts[:] = [_summed(parts)]

    def buffer(self, value: int, like: Tensor) -> Tensor | None:
        """The gradient so far if more may be added into it in place: like's dtype and layout."""
        parts = self._parts[value]
        if not parts:
            return None
        held, owned = _summed(parts)
        parts[:] = [(held, owned)]
        return held if owned and held.dtype == like.dtype and dense_like(held, like) else None

    def take(self, value: int) -> tuple[Tensor | None, bool]:
        """The whole gradient and whether its buffer may be overwritten; it is gone afterwards."""
        parts, self._parts[value] = self._parts[value], []
        return _summed(parts) if parts else (None, False)

    def take_pair(self, value: int) -> tuple[Tensor | None, Tensor | None, bool]:
        """As `take`, but a sum of two as its two parts; the first is the one to overwrite."""
        parts, self._parts[value] = self._parts[value], []
        if len(parts) < 2:
            return (*parts[0][:1], None, parts[0][1]) if parts else (None, None, False)
        (a, own_a), (b, own_b) = parts
        return (a, b, True) if own_a else (b, a, own_b)

    def set(self, value: int, grad: Tensor) -> None:
        """Puts the whole gradient in, a buffer of the program's."""
        self._parts[value] = [(grad, True)]


def _summed(parts: list[tuple[Tensor, bool]]) -> tuple[Tensor, bool]:
    held, owned = parts[0]
    for grad, mine in parts[1:]:
        if held.dtype != grad.dtype:
            wider = torch.promote_types(held.dtype, grad.dtype)
            held, grad, owned, mine = held.to(wider), grad.to(wider), False, False
        if owned:
            held = held.add_(grad)
        elif mine:
            held = grad.add_(held)
        else:
            held = held + grad
        owned = True
    return held, owned


def dense_like(a: Tensor, b: Tensor) -> bool:
    """Whether both lie in memory in the same order without gaps."""
    return a.shape == b.shape and (
        (a.is_contiguous() and b.is_contiguous())
        or (
            a.dim() == 4
            and a.is_contiguous(memory_format=torch.channels_last)
            and b.is_contiguous(memory_format=torch.channels_last)
        )
    )
