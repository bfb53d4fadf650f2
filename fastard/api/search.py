"""A model's program as what evaluation attacks search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from fastard.attacks.search import RowObjective
from fastard.engine import Program
from fastard.engine.gradient import representable


class EngineSearch:
    """The model's program in fp32 (or the precision given to it)."""

    official = False

    def __init__(self, program: Program, compacts: bool = True) -> None:
        self.program, self.compacts = program, compacts
        self.forwards = self.gradients = 0

    @contextmanager
    def running(self, x: Tensor) -> Iterator[None]:
        """Around an attack on images like x: opens the program's running block."""
        with self.program.running(x):
            yield

    def logits(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        return self.program.infer_feed(self.program.prepared(x))

    def infer_feed(self, feed: Tensor) -> Tensor:
        """Logits of what `program.prepared` makes of images."""
        self.forwards += len(feed)
        return self.program.infer_feed(feed)

    def ascend(self, x: Tensor, objective: RowObjective) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.forward(x)
        loss, dlogits = objective.seed(logits)
        return logits, loss, self.vjp(dlogits)

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        return self.program.forward(x)

    def vjp(self, dlogits: Tensor, retain: bool = False) -> Tensor:
        self.gradients += len(dlogits)
        (dlogits,) = representable(self.program.low_dtype, dlogits)
        return self.program.pixel_vjp(dlogits, retain)
