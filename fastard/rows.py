"""A batch that several processes share: its noise, and what its parts must know of each other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_PART: ContextVar[tuple[int, int]] = ContextVar("part", default=(0, 1))


@contextlib.contextmanager
def part_of_batch(rank: int, world: int) -> Iterator[None]:
    """Says for the block that its batches are part `rank` of `world` equal parts of larger ones."""
    token = _PART.set((rank, world))
    try:
        yield
    finally:
        _PART.reset(token)


def drawn(draw: Callable[..., Tensor], shape: Sequence[int], **arguments: Any) -> Tensor:
    """The noise of this part's rows; the generator moves as if the whole batch were here.

    Equivalent to: ``draw((world * B, ...), **arguments)[rank * B : (rank + 1) * B]``, for shape
    [B, ...]; outside `part_of_batch` that is ``draw(shape, **arguments)``.
    """
    rank, world = _PART.get()
    if world == 1:
        return draw(shape, **arguments)
    rows, *rest = shape
    whole = draw((world * rows, *rest), **arguments)
    # A copy, so that the whole draw is freed.
    return whole[rank * rows : (rank + 1) * rows].clone()


def parts() -> int:
    """Into how many equal parts the batch is divided; 1 outside of `part_of_batch`."""
    return _PART.get()[1]


def mine(whole: Tensor) -> Tensor:
    """This part's rows of a tensor [world * B, ...] of the whole batch."""
    rank, world = _PART.get()
    return whole.chunk(world)[rank] if world > 1 and len(whole) else whole


def gathered(part: Tensor) -> Tensor:
    """The rows of all parts, [world * B, ...] for this one's [B, ...], detached."""
    if parts() == 1:
        return part.detach()
    part = part.detach().contiguous()
    whole = part.new_empty((parts() * len(part), *part.shape[1:]))
    dist.all_gather_into_tensor(whole, part)
    return whole


def total(number: Tensor) -> Tensor:
    """The sum over the parts, detached; outside of `part_of_batch` the number itself."""
    return _reduced(number, dist.ReduceOp.SUM)


def mean(number: Tensor) -> Tensor:
    """The mean over the parts, detached."""
    return total(number) / parts()


def least(number: Tensor) -> Tensor:
    """The smallest of the parts' numbers, detached."""
    return _reduced(number, dist.ReduceOp.MIN)


def most(number: Tensor) -> Tensor:
    """The largest of the parts' numbers, detached."""
    return _reduced(number, dist.ReduceOp.MAX)


def rolled(x: Tensor) -> Tensor:
    """Each row's neighbour in the whole batch, detached.

    Equivalent to: ``x.roll(1, 0)`` for the whole batch.
    """
    rank, world = _PART.get()
    if world == 1:
        return x.detach().roll(1, 0)
    before = gathered(x[-1:])[rank - 1]
    return torch.cat([before[None], x.detach()[:-1]])


def _reduced(number: Tensor, how: Any) -> Tensor:
    number = number.detach()
    if parts() > 1:
        number = number.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(number, how)
    return number
