"""APGD's runs over the images that still withstand, on one model's program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastard import checks
from fastard.api.attack import Bound
from fastard.attacks import Moves, Start
from fastard.attacks.apgd import Found, sphere_start
from fastard.attacks.apgd import apgd as search
from fastard.engine import Program, RowLoss
from fastard.engine.gradient import representable
from fastard.kinds import LossKind, Norm

LOSSES = {"ce": LossKind.ce, "dlr": LossKind.dlr, "dlr-targeted": LossKind.dlr}


def ranks(loss: str, n_restarts: int, n_target_classes: int) -> Iterator[int | None]:
    """For each run the place of its target among the classes, likeliest 1; None: untargeted."""
    for rank in range(2, n_target_classes + 2) if loss == "dlr-targeted" else [None]:
        yield from [rank] * n_restarts


@dataclass
class Runs:
    """A program, a setting, and the runs over the images that still withstand."""

    program: Program
    moves: Moves
    start: Start
    loss: str
    steps: int
    rho: float
    eot_iter: int
    look_for_broken: bool
    iterations: int = 0

    def _noise(self, x: Tensor) -> Tensor:
        draw = torch.rand if self.moves.norm == Norm.Linf else torch.randn
        return draw(x.shape, device=self.start.device, generator=self.start.generator,
                    dtype=torch.float32)  # fmt: skip

    def _run(self, x: Tensor, y: Tensor, goals: Tensor | None, eps: Bound) -> tuple[Found, Tensor]:
        """One run over images x; and where a gradient was not finite."""
        kind = LOSSES[self.loss]
        seed = RowLoss(kind, y, check_values=False)
        if goals is not None:
            seed = RowLoss(kind, goals, labels=y, targeted=True, check_values=False)
        broken = torch.zeros_like(y, dtype=torch.bool)

        def query(x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            grad = torch.zeros_like(x_adv)
            for _ in range(self.eot_iter):
                logits = self.program.forward(x_adv)
                loss, dlogits = seed(logits)
                (dlogits,) = representable(self.program.low_dtype, dlogits)
                grad += self.program.pixel_vjp(dlogits)
            if self.look_for_broken:
                broken.logical_or_(~torch.isfinite(grad).flatten(1).all(1))
            return loss, grad / self.eot_iter, logits.argmax(1) == y

        moves = Moves(eps, 0.0, self.moves.norm, self.moves.clip_min, self.moves.clip_max)
        start = sphere_start(x, self._noise(x), moves)
        self.iterations += self.steps
        return search(query, x, start, moves, self.steps, self.rho), broken

    def all(
        self, x: Tensor, y: Tensor, places: Sequence[int | None], best_loss: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The images returned, the highest losses, and where a gradient was not finite."""
        adv, broken = x.clone(), torch.zeros_like(y, dtype=torch.bool)
        losses = torch.full_like(y, -torch.inf, dtype=x.dtype)
        if len(x) == 0:
            return adv, losses, broken
        logits = self.program.infer_feed(self.program.prepared(x))
        checks.model_logits(logits)
        checks.labels_below(y, logits.shape[1], "y")
        robust = logits.argmax(1) == y
        for rank in places:
            if rank is not None and rank > logits.shape[1]:
                break
            # Read once a run, never inside it.
            left = torch.arange(len(x), device=x.device) if best_loss else robust.nonzero()[:, 0]
            if len(left) == 0:
                break
            goals = None if rank is None else logits[left].argsort(1)[:, -rank]
            eps = self.moves.eps
            if isinstance(eps, Tensor) and eps.numel() > 1:
                eps = eps.to(x.device)[left]
            found, broken_here = self._run(x[left], y[left], goals, eps)
            higher = found.loss > losses[left]
            taken = (higher if best_loss else ~found.robust).view(-1, *[1] * (x.dim() - 1))
            candidates = found.best if best_loss else found.fooled
            adv[left] = torch.where(taken, candidates, adv[left])
            robust[left] = found.robust
            losses[left] = torch.where(higher, found.loss.to(losses.dtype), losses[left])
            broken[left] |= broken_here
        return adv, losses, broken
