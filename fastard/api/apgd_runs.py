"""A program as what Auto-PGD searches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

from torch import Tensor

from fastard.attacks.apgd_runs import Place
from fastard.attacks.search import RowObjective
from fastard.engine import Program
from fastard.engine.gradient import representable

LOSSES = ("ce", "dlr", "dlr-targeted")


def places(loss: str, n_restarts: int, n_target_classes: int) -> Iterator[Place]:
    """The runs in order: each target's restarts; the second likeliest class is the first target."""
    for rank in range(2, n_target_classes + 2) if loss == "dlr-targeted" else [None]:
        yield from (Place(restart, rank) for restart in range(n_restarts))


class ProgramSearch:
    """A program's passes in its running block, whatever its precision; no row leaves."""

    official = compacts = False

    def __init__(self, program: Program) -> None:
        self.program = program

    def running(self, x: Tensor) -> AbstractContextManager[None]:
        return self.program.running(x)

    def logits(self, x: Tensor) -> Tensor:
        return self.program.infer_feed(self.program.prepared(x))

    def ascend(self, x: Tensor, objective: RowObjective) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.forward(x)
        loss, dlogits = objective.seed(logits)
        return logits, loss, self.vjp(dlogits)

    def forward(self, x: Tensor) -> Tensor:
        return self.program.forward(x)

    def vjp(self, dlogits: Tensor, retain: bool = False) -> Tensor:
        (dlogits,) = representable(self.program.low_dtype, dlogits)
        return self.program.pixel_vjp(dlogits, retain)
