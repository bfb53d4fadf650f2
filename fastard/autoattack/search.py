"""Two ways to search: the user's module under autograd, or its compiled program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastard.attacks.search import RowObjective
from fastard.engine import Program, attack_mode
from fastard.engine.gradient import representable
from fastard.engine.passes import NoGradient
from fastard.engine.unwrap import Model


class EagerSearch:
    """The module itself, under autograd, in the official code's operations."""

    official, compacts = True, False

    def __init__(self, model: Model) -> None:
        self.model = model
        self.forwards = self.gradients = 0
        self._leaf: Tensor | None = None
        self._logits: Tensor | None = None

    @contextmanager
    def running(self, x: Tensor) -> Iterator[None]:
        """Around an attack on images like x: the module in eval mode, its flags put back."""
        with attack_mode(self.model):
            yield

    def logits(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        with torch.no_grad():
            return self.model(x)

    def ascend(self, x: Tensor, objective: RowObjective) -> tuple[Tensor, Tensor, Tensor]:
        self.forwards += len(x)
        self.gradients += len(x)
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.model(leaf)
            loss = objective.differentiable(logits)
            grad = _gradient(loss.sum(), leaf)
        return logits.detach(), loss.detach(), grad.detach()

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        self._leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            self._logits = self.model(self._leaf)
        return self._logits.detach()

    def vjp(self, dlogits: Tensor, retain: bool = False) -> Tensor:
        if self._logits is None or self._leaf is None:
            raise RuntimeError("vjp needs a forward before it.")
        self.gradients += len(dlogits)
        return _gradient(self._logits, self._leaf, dlogits, retain)


def _gradient(of: Tensor, leaf: Tensor, seed: Tensor | None = None, retain: bool = False) -> Tensor:
    grad = None
    if of.requires_grad:
        (grad,) = torch.autograd.grad(of, [leaf], seed, retain_graph=retain, allow_unused=True)
    if grad is None:
        raise NoGradient
    return grad


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


def missing_gradient(search: EagerSearch | EngineSearch, x: Tensor) -> str | None:
    """Why the model has no gradient at images x, or None; a pass each way."""
    try:
        with search.running(x):
            search.vjp(torch.ones_like(search.forward(x)))
    except NoGradient as error:
        return str(error)
    except RuntimeError as error:
        # What a forward that leaves PyTorch says of an image that asks for its gradient.
        if "numpy() on Tensor that requires grad" not in str(error):
            raise
        return "the model's forward leaves PyTorch for numpy, where no gradient follows."
    return None
