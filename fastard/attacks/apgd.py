"""Auto-PGD over a query function: every decision of it stays on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastard import ops
from fastard.attacks.apgd_schedule import Halving, Sparsity
from fastard.attacks.pgd import Moves
from fastard.kinds import Norm
from fastard.ops.pgd_step import as_bound

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


def _column(t: Tensor, x: Tensor) -> Tensor:
    return t.view(-1, *[1] * (x.dim() - 1))


def sphere_start(x: Tensor, noise: Tensor, moves: Moves) -> Tensor:
    """x plus noise of exactly norm eps, clipped to the box: APGD's start.

    Equivalent to (Linf): ``t = 2 * noise - 1; (x + eps * t / (t.abs().amax((1, 2, 3), True) +
    1e-12)).clamp(0, 1)``; in L2 Gaussian noise over its norm; in L1 Gaussian noise projected.
    """
    noise = noise.to(x.device, x.dtype)
    eps = _column(as_bound(moves.eps, x), x).to(x.dtype)
    if moves.norm == Norm.Linf:
        noise = 2 * noise - 1
        size = noise.flatten(1).abs().amax(1)
    elif moves.norm == Norm.L2:
        size = noise.flatten(1).norm(dim=1)
    else:
        start = x + noise
        return _projected(start, x, moves)
    start = x + eps * (noise / (_column(size, x) + 1e-12))
    return start.clamp(moves.clip_min, moves.clip_max)


def _step(at: Tensor, grad: Tensor, x: Tensor, moves: Moves, alpha: float | Tensor) -> Tensor:
    return ops.pgd_step_(
        at, grad, x, moves.eps, alpha, moves.norm, moves.clip_min, moves.clip_max)  # fmt: skip


def _projected(at: Tensor, x: Tensor, moves: Moves) -> Tensor:
    """Into ball and box, in place: a step of size 0."""
    return _step(at, torch.zeros_like(at), x, moves, 0.0)


def _momentum_step(
    x_adv: Tensor, x_old: Tensor, grad: Tensor, x: Tensor, moves: Moves, size: Tensor, fresh: float
) -> Tensor:
    moved = _step(x_adv.clone(), grad, x, moves, size)
    mixed = x_adv + (moved - x_adv) * fresh + (x_adv - x_old) * (1 - fresh)
    return _projected(mixed, x, moves)


def _sparse_step(
    x_adv: Tensor, grad: Tensor, x: Tensor, moves: Moves, size: Tensor, share: Tensor
) -> Tensor:
    """An L1 step of `size` along the signs of each sample's `share` of largest gradients."""
    flat = grad.flatten(1)
    n = flat.shape[1]
    skipped = ((1 - share) * n).clamp(0, n - 1).long()
    threshold = flat.abs().sort(1)[0].gather(1, skipped[:, None])
    sign = torch.where(flat.abs() >= threshold, flat.sign(), 0.0)
    move = size[:, None] * sign / (sign.abs().sum(1, keepdim=True) + 1e-10)
    return _projected(x_adv + move.view_as(x), x, moves)


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
        query: images to (loss [B], gradient, correct [B] bool); what it returns is not written to.
        x, start: the clean images and the start, fp32 or fp64.
        moves: radius, norm and box; its alpha and l1_sparsity are not read.
        steps: queries after the start's.
        rho: a number in (0, 1].

    Source: Croce & Hein 2020 (arXiv 2003.01690), 2021 (L1, arXiv 2103.01208),
        github.com/fra31/auto-attack, autopgd_base.py.
    """
    x_adv, x_old = start, start
    loss, grad, robust = query(x_adv)
    best, best_loss, best_grad, fooled = x_adv, loss, grad.clone(), x_adv
    eps = as_bound(moves.eps, x).expand(len(x)).clone()
    sparse = moves.norm == Norm.L1
    schedule = Sparsity(x, eps, steps) if sparse else Halving(best_loss, eps, steps, rho)
    for i in range(steps):
        if isinstance(schedule, Sparsity):
            moved = _sparse_step(x_adv, grad, x, moves, schedule.size, schedule.share)
        else:
            fresh = 0.75 if i > 0 else 1.0
            moved = _momentum_step(x_adv, x_old, grad, x, moves, schedule.size, fresh)
        x_old, x_adv = x_adv, moved
        loss, grad, correct = query(x_adv)
        robust = robust & correct
        fooled = torch.where(_column(correct, x), fooled, x_adv)
        higher = loss > best_loss
        best_loss = torch.where(higher, loss, best_loss)
        best = torch.where(_column(higher, x), x_adv, best)
        best_grad = torch.where(_column(higher, x), grad, best_grad)
        back = schedule.after(i, loss, best_loss, best)
        if back is not None:
            x_adv = torch.where(_column(back, x), best, x_adv)
            grad = torch.where(_column(back, x), best_grad, grad)
    return Found(best, best_loss, fooled, robust)
