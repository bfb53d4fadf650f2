"""`apgd_step_` and `apgd_keep_`: an iteration of Auto-PGD beside the model's passes."""

from __future__ import annotations

import torch
from torch import Tensor

from fastard import checks, reference_apgd
from fastard.kinds import Norm, parse_norm
from fastard.ops._backend import detached, implementation, laid_out_like, mutated


def _beside(t: Tensor, x_adv: Tensor, name: str) -> None:
    checks.same_shape(t, x_adv, name, "x_adv")
    checks.same_device(t, x_adv, name, "x_adv")
    if t.dtype != x_adv.dtype:
        raise TypeError(f"{name} must have x_adv's dtype {x_adv.dtype}, but has {t.dtype}.")


def _written(t: Tensor, x_adv: Tensor, name: str) -> None:
    _beside(t, x_adv, name)
    if t.stride() != x_adv.stride():
        raise ValueError(f"{name} must have x_adv's memory layout: it is written in place.")


def apgd_step_(
    x_adv: Tensor,
    x_old: Tensor | None,
    grad: Tensor,
    x: Tensor,
    eps: Tensor,
    size: Tensor,
    norm: str | float | Norm = "Linf",
    fresh: float = 0.75,
    clip_min: float = 0.0,
    clip_max: float = 1.0,
    *,
    share: Tensor | None = None,
    moved: Tensor | None = None,
) -> Tensor:
    """Auto-PGD's step, in place; x_old receives the point that is left.

    Equivalent to (Linf): ``moved = project(x_adv + size * grad.sign()); x_old, x_adv = x_adv,
    project(x_adv + (moved - x_adv) * fresh + (x_adv - x_old) * (1 - fresh))`` with project(v) =
    ``v.clamp(x - eps, x + eps).clamp(clip_min, clip_max)``

    L2 moves along grad / (||grad||_2 + 1e-12) and projects onto the ball, then the box, both times.
    L1 has no momentum: it moves each sample's `share` of coordinates of largest gradient by equal
    amounts that sum to `size`, and projects exactly onto ball and box; x_old may be None.

    Args:
        x_adv: [B, ...] fp32 or fp64, dense (contiguous or channels_last), mutated; Linf in fp32 is
            bitwise the line above.
        x_old: the point before x_adv, x_adv's layout, mutated.
        grad, x: gradient and clean images; a NaN gradient moves nothing (L2: nothing of its
            sample).
        eps, size: radius and step size, one value or one per sample, x_adv's dtype.
        share: L1: in [0, 1], one value or one per sample.
        moved: L1: [B], receives how many coordinates differ from x afterwards, rounded as the
            official code rounds them: it counts those that rounding alone moves.
    Raises:
        TypeError, ValueError: what does not fit, in one sentence.

    Croce & Hein 2020 (arXiv 2003.01690), 2021 (L1, arXiv 2103.01208).
    """
    kind = parse_norm(norm)
    if x_adv.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x_adv must be float32 or float64, but is {x_adv.dtype}.")
    _beside(grad, x_adv, "grad")
    _beside(x, x_adv, "x")
    if kind == Norm.L1:
        if share is None:
            raise ValueError("share must be given where norm is L1.")
    elif x_old is None:
        raise ValueError(f"x_old must be given where norm is {kind.name}.")
    else:
        _written(x_old, x_adv, "x_old")
    step = implementation("apgd_step_", x_adv)
    if step is None:
        with torch.no_grad():
            if kind == Norm.L1 and share is not None:
                new, count = reference_apgd.l1_step(
                    x_adv, grad, x, eps, size, share, clip_min, clip_max
                )
                if moved is not None:
                    moved.copy_(count)
                return x_adv.copy_(new)
            new = reference_apgd.apgd_step(
                x_adv, x_old, grad, x, eps, size, kind.name, fresh, clip_min, clip_max
            )
            if x_old is not None:
                x_old.copy_(x_adv)
            return x_adv.copy_(new)
    step.default(
        detached(x_adv), None if x_old is None else detached(x_old),
        laid_out_like(detached(grad), x_adv), laid_out_like(detached(x), x_adv),
        eps, size, share, moved, int(kind), fresh, clip_min, clip_max)  # fmt: skip
    mutated(x_adv, x_old, moved)
    return x_adv


def apgd_keep_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    loss: Tensor,
    correct: Tensor,
    best: Tensor,
    best_grad: Tensor,
    fooled: Tensor,
    robust: Tensor,
    marks: Tensor,
    *,
    sparse: bool = False,
    window: int = 0,
    rho: float = 0.75,
) -> None:
    """What Auto-PGD keeps of a query at x_adv, in place; rows are copied only where they change.

    Equivalent to: ``best[loss > best_loss] = x_adv[...]``, best_grad likewise; ``fooled[~correct] =
    x_adv[...]; robust &= correct``; and, where `window` says that a look back is due after so many
    queries, each sample's new step size and whether it goes back to its best.

    Args:
        x_adv, grad, x: [B, ...] fp32 or fp64.
        loss: [B] in x_adv's dtype. correct, robust: bool [B].
        best, best_grad, fooled: x_adv's shape and layout, mutated, as robust and marks are.
        marks: [9, B] in x_adv's dtype; `fastard.reference_apgd` names its rows.
        sparse: whether marks are L1's.
        rho: Linf and L2: the share of rises up to which the size halves.
    Raises:
        TypeError, ValueError: what does not fit, in one sentence.
    """
    if x_adv.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x_adv must be float32 or float64, but is {x_adv.dtype}.")
    _beside(grad, x_adv, "grad")
    _beside(x, x_adv, "x")
    for t, name in ((best, "best"), (best_grad, "best_grad"), (fooled, "fooled")):
        _written(t, x_adv, name)
    if marks.shape != (reference_apgd.MARKS, len(x_adv)):
        raise ValueError(f"marks must be [9, {len(x_adv)}], but are {list(marks.shape)}.")
    if len(x_adv) == 0:
        return
    keep = implementation("apgd_keep_", x_adv)
    written = (best, best_grad, fooled, robust, marks)
    if keep is None:
        with torch.no_grad():
            kept = reference_apgd.apgd_keep(
                x_adv, grad, x, loss, correct, *written, sparse, window, rho
            )
            for t, new in zip(written, kept, strict=True):
                t.copy_(new)
        return
    keep.default(
        detached(x_adv), laid_out_like(detached(grad), x_adv), laid_out_like(detached(x), x_adv),
        loss, correct, *written, sparse, window, rho)  # fmt: skip
    mutated(*written)
