"""A model's program as what evaluation attacks search."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from fastard.attacks.search import Given, Passes, RowObjective, Work
from fastard.engine import Program, capture
from fastard.engine.gradient import representable
from fastard.engine.recorder import Lane, Tensors

# A graph of a gradient for each class but one holds as many passes.
MOST_CLASSES = 32


class EngineSearch:
    """The model's program in fp32 (or the precision given to it).

    On a device with graphs a network's pass, its loss and its gradients are one recorded graph from
    the second pass of their kind and shape on; what an attack does between passes is a few fused
    kernels, which read nothing back.
    """

    official = False

    def __init__(self, program: Program, compacts: bool = True) -> None:
        self.program, self.compacts = program, compacts
        self.forwards = self.gradients = self._classes = 0

    @contextmanager
    def running(self, x: Tensor) -> Iterator[None]:
        """Around an attack on images like x: opens the program's running block."""
        with self.program.running(x):
            yield

    def logits(self, x: Tensor) -> Tensor:
        return self._inferred("images", x)

    def infer_feed(self, feed: Tensor) -> Tensor:
        """Logits of what `program.prepared` makes of images."""
        return self._inferred("feed", feed)

    def _inferred(self, of: str, x: Tensor) -> Tensor:
        program = self.program

        def work(held: capture.Values, lane: Lane | None) -> Tensors:
            feed = program.prepared(held["x"]) if of == "images" else held["x"]
            return {"logits": program.infer_feed(feed)}

        self.forwards += len(x)
        return self._run(("logits", of), work, {"x": x})["logits"]

    def _run(
        self, key: Hashable, work: capture.Work, given: Given, refusal: str | None = None
    ) -> Tensors:
        found = capture.run([self.program], key, work, given, refusal, renews=False)
        self._classes = found["logits"].shape[1]
        return found

    def ascend(self, x: Tensor, objective: RowObjective) -> tuple[Tensor, Tensor, Tensor]:
        def work(model: Passes, held: Given) -> Given:
            logits = model.forward(held["x"])
            loss, dlogits = objective.seed(logits, held)
            return {"logits": logits, "loss": loss, "grad": model.vjp(dlogits)}

        found = self.once(("ascend", objective.key), work, {"x": x, **objective.given}, 1)
        return found["logits"], found["loss"], found["grad"]

    def once(self, key: Hashable, work: Work, given: Given, gradients: int | None) -> Given:
        passes, refusal = _Passes(self.program), None
        if gradients is None and self._classes > MOST_CLASSES:
            refusal = f"a gradient for each of {self._classes} classes"
        found = self._run(key, lambda held, lane: work(passes, held), given, refusal)
        # A replay runs no Python: its passes are counted here.
        each = found["logits"].shape[1] - 1 if gradients is None else gradients
        self.forwards += len(given["x"])
        self.gradients += each * len(given["x"])
        return found

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        return _Passes(self.program).forward(x)

    def vjp(self, dlogits: Tensor, retain: bool = False) -> Tensor:
        self.gradients += len(dlogits)
        return _Passes(self.program).vjp(dlogits, retain)


@dataclass(frozen=True)
class _Passes:
    """A program's passes, in pixels, with seeds that its dtype can hold."""

    program: Program

    def forward(self, x: Tensor) -> Tensor:
        return self.program.forward(x)

    def vjp(self, dlogits: Tensor, retain: bool = False) -> Tensor:
        (dlogits,) = representable(self.program.low_dtype, dlogits)
        return self.program.pixel_vjp(dlogits, retain)
