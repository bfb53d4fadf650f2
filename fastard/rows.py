"""Noise for some rows of a batch that several processes share, cut from one draw for all of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from torch import Tensor

Source = Callable[..., Tensor]
_SOURCE: ContextVar[Source | None] = ContextVar("source", default=None)
_PART: ContextVar[tuple[int, int]] = ContextVar("part", default=(0, 1))


@contextlib.contextmanager
def part_of_batch(rank: int, world: int) -> Iterator[None]:
    """Says for the block that its batches are part `rank` of `world` equal parts of larger ones."""
    token = _PART.set((rank, world))
    try:
        yield
    finally:
        _PART.reset(token)


@contextlib.contextmanager
def drawn_by(source: Source) -> Iterator[None]:
    """Draws the block's noise by ``source(draw, shape, **arguments)`` instead of ``draw(shape,
    **arguments)``."""
    token = _SOURCE.set(source)
    try:
        yield
    finally:
        _SOURCE.reset(token)


def drawn(draw: Callable[..., Tensor], shape: Sequence[int], **arguments: Any) -> Tensor:
    """The noise of this part's rows; the generator moves as if the whole batch were here.

    Equivalent to: ``draw((world * B, ...), **arguments)[rank * B : (rank + 1) * B]``, for shape
    [B, ...]; outside `part_of_batch` that is ``draw(shape, **arguments)``.
    """
    source = _SOURCE.get()
    if source is not None:
        return source(draw, shape, **arguments)
    rank, world = _PART.get()
    if world == 1:
        return draw(shape, **arguments)
    rows, *rest = shape
    whole = draw((world * rows, *rest), **arguments)
    # A copy, so that the whole draw is freed.
    return whole[rank * rows : (rank + 1) * rows].clone()
