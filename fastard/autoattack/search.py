"""Two ways to search: the user's module under autograd, or its compiled program."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastard.api.search import EngineSearch
from fastard.attacks.search import Given, RowObjective, Work
from fastard.engine import Program, attack_mode
from fastard.engine.passes import NoGradient
from fastard.engine.unwrap import Model

__all__ = ["EagerSearch", "EngineSearch", "chosen", "missing_gradient"]


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

    def once(self, key: Hashable, work: Work, given: Given, gradients: int | None) -> Given:
        return work(self, given)

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


def chosen(
    given: EagerSearch | EngineSearch | None, model: Model, compat: str | None
) -> EagerSearch | EngineSearch:
    """The search given to an attack, or one of its model: the module itself for the official
    operations, else its program."""
    if given is not None:
        return given
    return EagerSearch(model) if compat == "official" else EngineSearch(Program(model, "fp32"))


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
