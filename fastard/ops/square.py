"""`square_step_`: Square Attack's bookkeeping between two forwards, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fastard import reference_square
from fastard.kinds import Norm
from fastard.ops._backend import implementation, mutated


def square_step_(
    x_best: Tensor,
    trial: Tensor,
    x: Tensor,
    eps: Tensor,
    draws: Tensor,
    labels: Tensor,
    margin: Tensor,
    loss: Tensor,
    queries: Tensor,
    norm: Norm,
    *,
    ce: bool = False,
    targeted: bool = False,
    logits: Tensor | None = None,
    judged: int = -1,
    judged_side: int = 0,
    proposed: int = -1,
    proposed_side: int = 0,
    pyramid: Tensor | None = None,
    clip_min: float = 0.0,
    clip_max: float = 1.0,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> None:
    """Judges the proposals in `trial` by their `logits`, then writes the next ones there.

    A row whose margin is above 0 takes its proposal where the loss fell or the margin is 0 or less;
    other rows stay as they are. Linf moves a square window of x_best by 2 eps a sign a channel and
    clips; L2 moves a second window's mass into a first and scales to eps; in L1 `trial` then holds
    displacements, to be projected (`random_start_`) before the network reads them.

    Args:
        x_best, trial, x: contiguous [B, C, H, W], fp32 or fp64; the first two mutated. x_best lies
            in ball and box. In Linf `trial` is x_best but for the window proposed, and
            (image - mean) / std if given.
        eps: [1] or [B] in x's dtype.
        draws: fp32 in [0, 1), [B or 1, queries, 2 + C] in Linf (row, column, signs), 5 + C else
            (two windows, whether the pyramid is transposed, signs).
        labels: [B] int64: the true classes, the targets if targeted.
        margin, loss: [B] in the logits' dtype, fp32 or fp64, mutated. The loss is the margin,
            minus the cross-entropy if `ce`, the cross-entropy if targeted.
        queries: [B] int64, raised where a proposal was judged; mutated.
        logits: [B, classes] of `trial`, whose windows `judged` of the draws placed, or None.
        judged, proposed: which query of the draws, or -1; each with its windows' side in pixels.
        pyramid: `reference_square.pyramid`, [proposed_side, proposed_side]; L2 and L1.
    Raises:
        RuntimeError: a shape, dtype, layout or device that does not fit, or a label out of range.

    Andriushchenko et al. 2020 (arXiv 1912.00049), github.com/fra31/auto-attack, square.py.
    """
    step = implementation("square_step_", x)
    if step is not None:
        step.default(
            x_best, trial, x, eps, draws, labels, margin, loss, queries, int(norm), ce, targeted,
            judged, judged_side, proposed, proposed_side, clip_min, clip_max, logits, pyramid,
            mean, std)  # fmt: skip
        mutated(x_best, trial, margin, loss, queries)
        return
    with torch.no_grad():
        found = reference_square.step(
            x_best, trial, x, eps, draws, labels, margin, loss, queries, norm.name, ce, targeted,
            judged, judged_side, proposed, proposed_side, clip_min, clip_max, logits, pyramid,
            mean, std)  # fmt: skip
        for t, value in zip((x_best, trial, margin, loss, queries), found, strict=True):
            t.copy_(value)
