"""What an evaluation attack may ask of a model, and how rows leave its batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Bucket sizes on devices that record graphs: each reused, at most a third of a batch idle.
_BUCKETS = sorted({1, 2, 3} | {m << k for k in range(1, 16) for m in (2, 3)})


Given = dict[str, Tensor]


@dataclass(frozen=True)
class RowObjective:
    """A loss per sample, to be raised, said twice.

    Attributes:
        differentiable: logits to loss [B], in PyTorch, as the official code writes it.
        seed: of (logits, `given`) the loss [B] and dlogits [B, C], fused.
        given: labels and targets by name.
        key: everything that `seed` depends on beside logits and `given`.
    """

    differentiable: Callable[[Tensor], Tensor]
    seed: Callable[[Tensor, Given], tuple[Tensor, Tensor]]
    given: Given
    key: Hashable


class Passes(Protocol):
    """A model's forward and what follows from it."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits, detached; `vjp` then answers for this x."""
        ...

    def vjp(self, dlogits: Tensor, retain: bool = False) -> Tensor:
        """The gradient in the last forward's x; retain it for several."""
        ...


# Of a model and of what is given by name: tensors by name.
Work = Callable[[Passes, Given], Given]


class Search(Passes, Protocol):
    """A model during a search: fp32, eval mode, no trace left.

    Attributes:
        official: whether the attack must do as the official code does, operation for operation.
        compacts: whether solved rows may leave the batch between blocks of iterations.
    """

    official: bool
    compacts: bool

    def running(self, x: Tensor) -> AbstractContextManager[None]:
        """Around an attack on images like x."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """[B, C], detached, no gradient to follow."""
        ...

    def ascend(self, x: Tensor, objective: RowObjective) -> tuple[Tensor, Tensor, Tensor]:
        """(logits, loss [B], gradient of the summed loss in x), all detached."""
        ...

    def once(self, key: Hashable, work: Work, given: Given, gradients: int | None) -> Given:
        """What `work` makes of the model and of `given`, from a recording where there is one.

        Args:
            key: everything that `work` depends on beside its arguments.
            work: one forward of ``given["x"]``, whose `logits` are in what it returns, and so many
                `gradients`, None: one for each class but one; it reads no value back.
        """
        ...


def bucket(rows: int) -> int:
    """The smallest bucket that holds so many rows."""
    return next(size for size in _BUCKETS if size >= rows)


def compacted(left: Tensor, exact: bool) -> tuple[Tensor, int]:
    """The indices of the rows left, padded with the first of them to a bucket unless `exact`; and
    how many are left.

    The one reading of a look: call it between blocks only. A padded row does what the first row
    does, so that writing it back changes nothing.
    """
    rows = left.nonzero()[:, 0]
    if exact or len(rows) == 0:
        return rows, len(rows)
    spare = bucket(len(rows)) - len(rows)
    return torch.cat((rows, rows[:1].expand(spare))), len(rows)
