"""AdaAD's and AdaIAD's outer losses (Huang et al. 2023)."""

from __future__ import annotations

import torch

from fastard import ops
from fastard.losses.reductions import require_share, times_parts


def adaad(
    adv_logits: torch.Tensor,
    adv_teacher_logits: torch.Tensor,
    clean_logits: torch.Tensor | None = None,
    clean_teacher_logits: torch.Tensor | None = None,
    adv_weight: float = 1.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """AdaAD: the student follows the teacher on x' with weight lambda, and on x with the rest.

    Equivalent to, for reduction "batchmean"::

        k = lambda q, p: F.kl_div(q.log_softmax(1), p.softmax(1), reduction="batchmean")
        adv_weight * k(adv, adv_teacher) + (1 - adv_weight) * k(clean, clean_teacher)

    Args:
        adv_logits, adv_teacher_logits: [B, C] logits of the adversarial images.
        clean_logits, clean_teacher_logits: [B, C] logits of the clean images; not needed for a
            weight of 1.
        adv_weight: lambda, between 0 and 1.
        reduction: "mean" (over B * C), "batchmean" or "sum".

    Returns: a 0-dim loss. Raises ValueError for a weight outside [0, 1], an unknown reduction,
        shapes that differ or clean logits that are missing.
    Source: Huang et al. 2023 (CVPR), github.com/boyellow/AdaAD: "mean" on CIFAR-10, "batchmean" on
        CIFAR-100.
    """
    require_share(adv_weight, "adv_weight")
    scale = times_parts(1.0, reduction)
    loss = ops.distill_kl(adv_logits, adv_teacher_logits, reduction=reduction, scale=scale)
    if adv_weight == 1:
        return loss
    if clean_logits is None or clean_teacher_logits is None:
        raise ValueError(f"clean logits must be given where adv_weight is {adv_weight}.")
    clean = ops.distill_kl(clean_logits, clean_teacher_logits, reduction=reduction, scale=scale)
    return adv_weight * loss + (1 - adv_weight) * clean
