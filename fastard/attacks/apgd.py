"""Auto-PGD over a query function: every decision of it stays on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastard import ops
from fastard import reference_apgd as rows
from fastard.attacks import apgd_official as official_code
from fastard.attacks.apgd_schedule import checkpoints, first_marks, sparse_checkpoints
from fastard.attacks.pgd import Moves
from fastard.kinds import Norm
from fastard.ops.pgd_step import as_bound
from fastard.shapes import per_sample

Query = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass
class Found:
    """What a run of APGD found.

    Attributes:
        best: the images of highest loss; `loss`, [B], is theirs.
        fooled: the latest misclassified images; where none was, the start.
        robust: bool [B]; no image was misclassified.
    """

    best: Tensor
    loss: Tensor
    fooled: Tensor
    robust: Tensor


def projected(at: Tensor, x: Tensor, moves: Moves) -> Tensor:
    """`at` moved into ball and box, in place: a step of size 0."""
    return ops.pgd_step_(
        at, torch.zeros_like(at), x, moves.eps, 0.0, moves.norm, moves.clip_min,
        moves.clip_max)  # fmt: skip


def sphere_start(x: Tensor, noise: Tensor, moves: Moves) -> Tensor:
    """x plus noise of exactly norm eps, clipped to the box: APGD's start.

    Equivalent to (Linf): ``t = 2 * noise - 1; (x + eps * t / (t.abs().amax((1, 2, 3), True) +
    1e-12)).clamp(0, 1)``; in L2 Gaussian noise over its norm; in L1 Gaussian noise projected.
    """
    noise = noise.to(x.device, x.dtype)
    if moves.norm == Norm.L1:
        return projected(x + noise, x, moves)
    if moves.norm == Norm.Linf:
        noise = 2 * noise - 1
        size = noise.flatten(1).abs().amax(1)
    else:
        size = official_code.length(noise).flatten()
    eps = per_sample(as_bound(moves.eps, x), x).to(x.dtype)
    start = x + eps * (noise / (per_sample(size, x) + 1e-12))
    return start.clamp(moves.clip_min, moves.clip_max)


class Walk:
    """One run of Auto-PGD between its iterations; rows are samples, and may leave.

    Args:
        query: images to (loss [B], gradient, correct [B] bool); what it returns is not written to.
        x, start: the clean images and the start, fp32 or fp64.
        moves: radius, norm and box; its alpha and l1_sparsity are not read.
        looks: after which iterations, counted from 0, it looks back, and on how many.
        rho: a number in (0, 1].
        moved: L1: the number of coordinates that the start has moved, [B]; None: those that differ.
        random: L1: whether the start says nothing of how many coordinates to move.
        official: L2 and L1 steps are rounded as the official code rounds them.
    """

    def __init__(
        self, query: Query, x: Tensor, start: Tensor, moves: Moves, looks: Mapping[int, int],
        rho: float = 0.75, moved: Tensor | None = None, random: bool = True,
        official: bool = False,
    ) -> None:  # fmt: skip
        self.x, self.moves, self.looks, self.rho = x, moves, looks, rho
        self.sparse = moves.norm == Norm.L1
        self.official = official and moves.norm != Norm.Linf
        # Buffers of the walk's own, in x's layout: the ops write them.
        self.x_adv = torch.empty_like(x).copy_(start)
        self.x_old = self.x_adv.clone()
        loss, self.grad, self.robust = query(self.x_adv)
        self.best, self.fooled = self.x_adv.clone(), self.x_adv.clone()
        self.best_grad = torch.empty_like(x).copy_(self.grad)
        self.robust = self.robust.clone()
        self.eps = as_bound(moves.eps, x)
        if moved is None:
            moved = (self.x_adv != x).flatten(1).sum(1)
        self.marks = first_marks(loss, x, moves.eps, moves.norm, moved, random)

    def _step(self, fresh: float) -> None:
        moves, size = self.moves, self.marks[rows.SIZE]
        if not self.official:
            share = self.marks[rows.SHARE] if self.sparse else None
            moved = self.marks[rows.MOVED_NOW] if self.sparse else None
            ops.apgd_step_(
                self.x_adv, self.x_old, self.grad, self.x, self.eps, size, moves.norm, fresh,
                moves.clip_min, moves.clip_max, share=share, moved=moved)  # fmt: skip
            return
        box = (moves.clip_min, moves.clip_max)
        if self.sparse:
            new = official_code.l1_step(
                self.x_adv, self.grad, self.x, moves.eps, size, self.marks[rows.SHARE], box
            )
            self.marks[rows.MOVED_NOW] = (new != self.x).flatten(1).sum(1).to(new.dtype)
        else:
            new = official_code.l2_step(
                self.x_adv, self.x_old, self.grad, self.x, moves.eps, size, fresh, box
            )
        self.x_old, self.x_adv = self.x_adv, new

    def advance(self, query: Query, i: int) -> None:
        """Iteration i: a step, a query of all rows, and what follows from it."""
        self._step(0.75 if i > 0 else 1.0)
        loss, self.grad, correct = query(self.x_adv)
        window = self.looks.get(i, 0)
        ops.apgd_keep_(
            self.x_adv, self.grad, self.x, loss, correct, self.best, self.best_grad, self.fooled,
            self.robust, self.marks, sparse=self.sparse, window=window, rho=self.rho)  # fmt: skip
        if window:
            back = per_sample(self.marks[rows.BACK] > 0, self.x)
            self.x_adv = torch.where(back, self.best, self.x_adv)
            self.grad = torch.where(back, self.best_grad, self.grad)

    def keep(self, index: Tensor) -> None:
        """Goes on with the rows `index` alone, [n] int64."""
        for name in ("x", "x_adv", "x_old", "grad", "best", "best_grad", "fooled", "robust"):
            setattr(self, name, getattr(self, name)[index])
        self.marks = self.marks[:, index]
        if len(self.eps) > 1:
            self.eps = self.eps[index]

    @property
    def found(self) -> Found:
        """What the walk has found so far."""
        return Found(self.best, self.marks[rows.BEST_LOSS], self.fooled, self.robust)


def apgd(
    query: Query, x: Tensor, start: Tensor, moves: Moves, steps: int, rho: float = 0.75
) -> Found:
    """Auto-PGD: steps with momentum whose size follows the loss, back to the best where it halves.

    Equivalent to (Linf, L2), `steps` times, with a = 1 at the first and 0.75 after::

        moved = project(x_adv + size * direction(grad))
        x_old, x_adv = x_adv, project(x_adv + a * (moved - x_adv) + (1 - a) * (x_adv - x_old))
        loss, grad, correct = query(x_adv)

    and at each checkpoint size / 2, x_adv and grad of the best loss, where the loss rose in at most
    `rho` of the steps since the last one, or neither its best nor the size changed then. In L1 a
    step moves the largest gradients, whose number follows the perturbation's, without momentum.

    Args:
        steps: queries after the start's. The others: as `Walk`.

    Source: Croce & Hein 2020 (arXiv 2003.01690), 2021 (L1, arXiv 2103.01208),
        github.com/fra31/auto-attack, autopgd_base.py.
    """
    looks = sparse_checkpoints(steps) if moves.norm == Norm.L1 else checkpoints(steps)
    walk = Walk(query, x, start, moves, looks, rho)
    for i in range(steps):
        walk.advance(query, i)
    return walk.found
