"""Outer losses of adversarial training and robust distillation, on the fused `ops.distill_kl`."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastard import ops
from fastard.kinds import unknown

REDUCTIONS = ("mean", "batchmean", "sum")


def trades(
    student_clean_logits: torch.Tensor,
    student_adv_logits: torch.Tensor,
    y: torch.Tensor,
    beta: float = 6.0,
    *,
    target_logits: torch.Tensor | None = None,
) -> torch.Tensor:
    """TRADES: cross entropy on clean images plus beta times the divergence of the adversarial ones.

    Equivalent to::

        F.cross_entropy(clean, y) + beta * F.kl_div(
            adv.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True)

    The gradient flows into both logits, as in the published code: the target is not detached.

    Args:
        student_clean_logits: [B, C] logits of the clean images.
        student_adv_logits: [B, C] logits of the adversarial images.
        y: [B] int64 labels.
        beta: weight of the divergence, at least 0.
        target_logits: [B, C] logits that replace the clean ones as target of the divergence; the
            published code computes them in a second clean pass.

    Returns: a 0-dim loss. Raises ValueError for a negative beta or shapes that differ.
    Source: Zhang et al. 2019 (arXiv 1901.08573), github.com/yaodongyu/TRADES.
    """
    if beta < 0:
        raise ValueError(f"beta must be at least 0, but is {beta}.")
    target = student_clean_logits if target_logits is None else target_logits
    divergence = ops.distill_kl(student_adv_logits, target, reduction="batchmean")
    return F.cross_entropy(student_clean_logits, y) + beta * divergence


def rslad(
    adv_logits: torch.Tensor,
    clean_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    alpha: float = 5 / 6,
    scale: float = 1.0,
    reduction: str = "mean",
    log_floor: float = 1e-5,
) -> torch.Tensor:
    """RSLAD: the student's adversarial and clean outputs both follow the teacher's clean output.

    Equivalent to, for the default reduction::

        p = teacher.softmax(1)
        k = lambda q: scale * (p * ((p + log_floor).log() - q.log_softmax(1))).mean()
        alpha * k(adv) + (1 - alpha) * k(clean)

    The defaults are the published code's: its mean runs over B * C, and on CIFAR-100 its scale is
    10. ``reduction="batchmean", log_floor=0`` is the exact divergence that later papers use.

    Args:
        adv_logits: [B, C] student logits of the adversarial images.
        clean_logits: [B, C] student logits of the clean images.
        teacher_logits: [B, C] teacher logits of the clean images.
        alpha: weight of the adversarial term, between 0 and 1.
        scale: factor on both terms.
        reduction: "mean" (over B * C), "batchmean" or "sum".
        log_floor: added to the teacher's probability inside its logarithm.

    Returns: a 0-dim loss. Raises ValueError for an alpha outside [0, 1], an unknown reduction or
        shapes that differ.
    Source: Zi et al. 2021 (arXiv 2108.07969), github.com/zibojia/RSLAD.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie between 0 and 1, but is {alpha}.")
    if reduction not in REDUCTIONS:
        raise unknown("reduction", reduction, REDUCTIONS)
    divergences = [
        ops.distill_kl(
            logits, teacher_logits, reduction=reduction, log_floor=log_floor, scale=scale
        )
        for logits in (adv_logits, clean_logits)
    ]
    return alpha * divergences[0] + (1 - alpha) * divergences[1]
