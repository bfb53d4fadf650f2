"""Random starts that belong to a sample, not to its place in a batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastard import rows
from fastard.attacks.draws import CounterDraws


@contextmanager
def keyed_by(ids: Tensor, seed: int) -> Iterator[None]:
    """PGD attacks in the block draw their starts for the samples `ids`, one restart after another.

    The draws are the same for any batch size, order and number of processes.
    """
    draws, calls = CounterDraws(seed, "pgd"), itertools.count()

    def source(draw: Callable[..., Tensor], shape: Sequence[int], **_: Any) -> Tensor:
        number = draws.rand if draw is torch.rand else draws.randn
        return number(ids, shape[1:], iteration=next(calls))

    with rows.drawn_by(source):
        yield
