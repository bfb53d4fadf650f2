"""The numbered values of a running program and the gradients that gather on them."""

from __future__ import annotations

import torch
from torch import Tensor


class Gradients:
    """One gradient a value; contributions are added in place where the buffer is the program's."""

    def __init__(self, count: int) -> None:
        self._sum: list[Tensor | None] = [None] * count
        self._owned = [False] * count

    def add(self, value: int, grad: Tensor | None, owned: bool) -> None:
        """Adds a contribution; `owned` says that nobody else reads this buffer."""
        held = self._sum[value]
        if grad is None:
            return
        if held is None:
            self._sum[value], self._owned[value] = grad, owned
            return
        if held.dtype != grad.dtype:
            wider = torch.promote_types(held.dtype, grad.dtype)
            held, grad = held.to(wider), grad.to(wider)
        if self._owned[value]:
            self._sum[value] = held.add_(grad)
        elif owned:
            self._sum[value] = grad.add_(held)
        else:
            self._sum[value] = held + grad
        self._owned[value] = True

    def buffer(self, value: int, like: Tensor) -> Tensor | None:
        """The gradient so far if more may be added into it in place: like's dtype and layout."""
        held = self._sum[value]
        fits = held is not None and self._owned[value] and held.dtype == like.dtype
        return held if fits and held is not None and dense_like(held, like) else None

    def take(self, value: int) -> tuple[Tensor | None, bool]:
        """The whole gradient and whether its buffer may be overwritten; it is gone afterwards."""
        held = self._sum[value]
        self._sum[value] = None
        return held, self._owned[value]

    def set(self, value: int, grad: Tensor) -> None:
        self._sum[value], self._owned[value] = grad, True


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
