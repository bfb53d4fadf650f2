"""Two ways to run a model forward and back to its input: eager autograd, or a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastard import checks
from fastard.engine.plan import Plan, Record
from fastard.engine.unwrap import Model

NO_WAY_BACK = (
    "the model's logits do not depend on x through autograd (a detached tensor, torch.no_grad or "
    "an integer in its forward?); a gradient attack cannot judge it."
)
NO_FORWARD = "vjp needs a forward before it, in the same running block."


class NoGradient(ValueError):
    """The model's logits do not depend on its input through autograd."""

    def __init__(self, said: str = NO_WAY_BACK) -> None:
        super().__init__(said)


@dataclass
class Passed:
    """What went through: calls each way, and images both forward and back (halves count half)."""

    forwards: int = 0
    gradients: int = 0
    images: float = 0.0

    def forward(self, feed: Tensor) -> None:
        self.forwards += 1
        self.images += len(feed) / 2

    def back(self, dlogits: Tensor) -> None:
        self.gradients += 1
        self.images += len(dlogits) / 2

    def since(self, before: Passed) -> Passed:
        """What went through after `before`."""
        return Passed(
            self.forwards - before.forwards, self.gradients - before.gradients,
            self.images - before.images)  # fmt: skip

    def add(self, more: Passed) -> None:
        self.forwards += more.forwards
        self.gradients += more.gradients
        self.images += more.images


class Passes(Protocol):
    """Logits of a prepared input and the input's gradient; one forward is kept at a time."""

    passed: Passed

    def forward(self, feed: Tensor) -> Tensor: ...

    def vjp(self, dlogits: Tensor, retain: bool) -> Tensor: ...

    def infer(self, feed: Tensor) -> Tensor: ...

    def forget(self) -> None: ...


def checked(logits: Any, feed: Tensor) -> Tensor:
    """Logits [batch, classes], or one sentence that says what the model returned."""
    if not isinstance(logits, Tensor):
        raise TypeError(
            "the model must return a tensor of logits [batch, classes], but returned "
            f"{checks.describe(logits)}."
        )
    if logits.dim() != 2 or len(logits) != len(feed):
        raise ValueError(
            f"the model must return logits [{len(feed)}, classes], but returned shape "
            f"{list(logits.shape)}."
        )
    return logits


def widened(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


class EagerPasses:
    """The module as it is, under autograd."""

    def __init__(self, run: Model) -> None:
        self.run, self.passed = run, Passed()
        self.writes_input = False
        self._leaf: Tensor | None = None
        self._logits: Tensor | None = None

    def _call(self, leaf: Tensor) -> Any:
        if self.writes_input:
            return self.run(leaf.clone())
        try:
            return self.run(leaf)
        except RuntimeError as error:
            # The model writes into its input: it gets a copy, and the gradient passes through.
            if "leaf Variable that requires grad" not in str(error):
                raise
            self.writes_input = True
            return self.run(leaf.clone())

    def forward(self, feed: Tensor) -> Tensor:
        self.passed.forward(feed)
        # The last graph goes before the next is built: peak memory is one pass.
        self.forget()
        self._leaf = feed.detach().requires_grad_()
        self._logits = checked(self._call(self._leaf), feed)
        return widened(self._logits.detach())

    def vjp(self, dlogits: Tensor, retain: bool) -> Tensor:
        if self._leaf is None or self._logits is None:
            raise RuntimeError(NO_FORWARD)
        self.passed.back(dlogits)
        dx = None
        if self._logits.requires_grad:
            (dx,) = torch.autograd.grad(
                self._logits, self._leaf, dlogits.to(self._logits.dtype), retain_graph=retain,
                allow_unused=True)  # fmt: skip
        if dx is None:
            raise NoGradient
        return dx

    def infer(self, feed: Tensor) -> Tensor:
        self.passed.forward(feed)
        with torch.no_grad():
            # A copy, since some models write into their input.
            source = feed.detach().clone() if self.writes_input else feed.detach()
            return widened(checked(self.run(source), feed))

    def forget(self) -> None:
        self._leaf = self._logits = None


class PlannedPasses:
    """A plan, with the records of its last forward, one a part of the batch."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.passed = plan, Passed()
        self._records: list[Record] | None = None
        self._sizes: list[int] = []

    def forward(self, feed: Tensor) -> Tensor:
        self._records = None
        self.passed.forward(feed)
        feed = feed.detach()
        parts = feed.chunk(self.plan.parts.of(len(feed)))
        made = [self.plan.forward(part) for part in parts]
        self._records, self._sizes = [record for _, record in made], [len(p) for p in parts]
        return checked(_joined([logits for logits, _ in made]), feed)

    def vjp(self, dlogits: Tensor, retain: bool) -> Tensor:
        records = self._records
        if records is None:
            raise RuntimeError(NO_FORWARD)
        self.passed.back(dlogits)
        found = []
        for record, seed in zip(records, dlogits.split(self._sizes), strict=True):
            dx = self.plan.backward(record, seed, retain)
            if dx is None:
                raise NoGradient
            found.append(dx)
        if not retain:
            self._records = None
        return _joined(found)

    def infer(self, feed: Tensor) -> Tensor:
        self.passed.forward(feed)
        feed = feed.detach()
        parts = feed.chunk(self.plan.parts.of(len(feed)))
        return checked(_joined([self.plan.infer(part) for part in parts]), feed)

    def forget(self) -> None:
        self._records = None


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
