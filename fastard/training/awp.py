"""Adversarial weight perturbation (Wu et al. 2020)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

TINY = 1e-20


class AWP:
    """Lets a step's loss be taken at weights moved to raise it, and moves them back afterwards.

    Equivalent to, for each weight w of more than one dimension with gradient g of the loss::

        v = gamma * w.norm() / (g.norm() + 1e-20) * g
        w += v;  loss.backward();  optimizer.step();  w -= v

    One ascent step, as in the published code; BatchNorm statistics and other buffers are those of
    the second pass alone. The move back starts from the very bits that were there before: where the
    optimiser leaves a perturbed weight alone, the weight is bitwise as it was.

    Args:
        network: the network whose weights are perturbed.
        gamma: the perturbation's norm relative to the weight's, layer by layer, at least 0.
        buffers_of: further modules whose buffers the first pass must leave alone.
        shared: makes gradients, in place, those of the whole batch, where this process has a part.

    Source: Wu et al. 2020 (arXiv 2004.05884), github.com/csdongxian/AWP.
    """

    def __init__(
        self,
        network: nn.Module,
        gamma: float,
        buffers_of: Iterable[nn.Module] = (),
        shared: Callable[[list[torch.Tensor]], None] = lambda gradients: None,
    ):
        self.gamma, self.shared = gamma, shared
        self.weights: list[torch.Tensor] = [
            p for p in network.parameters() if p.dim() > 1 and p.requires_grad
        ]
        self.modules = [network, *buffers_of]

    @contextlib.contextmanager
    def perturbed(self, loss: Callable[[], torch.Tensor]) -> Iterator[None]:
        """Perturbs the weights for the block, in which the optimiser may step.

        Args:
            loss: computes the loss to raise, with its graph.
        """
        gradients = self._gradients(loss)
        with torch.no_grad():
            moves = self._moves(gradients)
            before = [w.clone() for w in self.weights]
            torch._foreach_add_(self.weights, moves)  # type: ignore[arg-type]  # its scalars' overload
            moved = [w.clone() for w in self.weights]
        try:
            yield
        except BaseException:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, before)
            raise
        with torch.no_grad():
            torch._foreach_sub_(self.weights, moved)  # type: ignore[arg-type]
            torch._foreach_add_(self.weights, before)  # type: ignore[arg-type]

    def _gradients(self, loss: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        buffers = [b for module in self.modules for b in module.buffers()]
        kept = [b.clone() for b in buffers]
        try:
            found = torch.autograd.grad(loss(), self.weights, allow_unused=True)
        finally:
            with torch.no_grad():
                for buffer, value in zip(buffers, kept, strict=True):
                    buffer.copy_(value)
        gradients = [
            torch.zeros_like(w) if g is None else g
            for g, w in zip(found, self.weights, strict=True)
        ]
        self.shared(gradients)
        return gradients

    def _moves(self, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        scales = torch._foreach_norm(self.weights)
        lengths = torch._foreach_norm(gradients)
        torch._foreach_add_(lengths, TINY)
        scales = torch._foreach_div(scales, lengths)
        torch._foreach_mul_(scales, self.gamma)
        return list(torch._foreach_mul(gradients, list(scales)))
