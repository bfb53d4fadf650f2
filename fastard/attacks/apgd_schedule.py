"""When Auto-PGD's step shrinks: which samples go back to their best, decided on the device."""

from __future__ import annotations

import torch
from torch import Tensor


def checkpoints(steps: int) -> dict[int, int]:
    """Each iteration after which APGD looks back (counted from 0), and on how many.

    The first window is 0.22 of the steps, each further one 0.03 shorter, down to 0.06.
    """
    window, shorter, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found, at = {}, window - 1
    while at < steps:
        found[at] = window
        window = max(window - shorter, least)
        at += window
    return found


class Halving:
    """Linf and L2: the size halves where the loss rose seldom, or neither best nor size moved."""

    def __init__(self, loss: Tensor, eps: Tensor, steps: int, rho: float) -> None:
        self.size, self.rho = 2 * eps, rho
        self._checkpoints = checkpoints(steps)
        # The first iteration's loss is compared with 0, as the official code does.
        self._previous, self._rises = torch.zeros_like(loss), torch.zeros_like(loss)
        self._best_then = loss
        self._halved_then = torch.ones_like(loss, dtype=torch.bool)

    def after(self, i: int, loss: Tensor, best_loss: Tensor, best: Tensor) -> Tensor | None:
        """Which samples go back to their best after iteration i, [B]; None between checkpoints."""
        self._rises = self._rises + (loss > self._previous)
        self._previous = loss
        window = self._checkpoints.get(i)
        if window is None:
            return None
        stuck = ~self._halved_then & (self._best_then >= best_loss)
        halved = (self._rises <= self.rho * window) | stuck
        self._halved_then, self._best_then = halved, best_loss
        self._rises = torch.zeros_like(self._rises)
        self.size = torch.where(halved, self.size / 2, self.size)
        return halved


class Sparsity:
    """L1: the share of pixels that a step moves follows how many the best perturbation has."""

    def __init__(self, x: Tensor, eps: Tensor, steps: int) -> None:
        self._x, self._eps, self.size = x, eps, eps
        self._every = max(int(0.04 * steps), 1)
        self._pixels = x[0].numel()
        self.share = torch.full_like(eps, 0.2)
        self._moved_then = torch.full_like(eps, self._pixels)

    def after(self, i: int, loss: Tensor, best_loss: Tensor, best: Tensor) -> Tensor | None:
        """As `Halving.after`."""
        if (i + 1) % self._every:
            return None
        moved = (best != self._x).flatten(1).sum(1).to(self._eps.dtype)
        sparser = moved / self._moved_then < 0.95
        self.share = moved / self._pixels / 1.5
        smaller = torch.maximum(self.size / 1.5, self._eps / 10)
        self.size = torch.where(sparser, self._eps, smaller)
        self._moved_then = moved
        return sparser
