"""RSLAD's outer loss (Zi et al. 2021)."""

from __future__ import annotations

import torch

from fastard import ops
from fastard.kinds import unknown
from fastard.losses.reductions import REDUCTIONS, require_share, times_parts


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
    require_share(alpha)
    if reduction not in REDUCTIONS:
        raise unknown("reduction", reduction, REDUCTIONS)
    scale = times_parts(scale, reduction)
    divergences = [
        ops.distill_kl(
            logits, teacher_logits, reduction=reduction, log_floor=log_floor, scale=scale
        )
        for logits in (adv_logits, clean_logits)
    ]
    return alpha * divergences[0] + (1 - alpha) * divergences[1]
