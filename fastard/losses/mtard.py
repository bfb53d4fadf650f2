"""MTARD's two terms and how they are balanced (Zhao et al. 2022)."""

from __future__ import annotations

import torch

from fastard import ops
from fastard.losses.reductions import times_parts


def mtard(
    adv_logits: torch.Tensor,
    clean_logits: torch.Tensor,
    adv_teacher_logits: torch.Tensor,
    clean_teacher_logits: torch.Tensor,
    scale: float = 1.0,
    reduction: str = "mean",
    log_floor: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """MTARD's terms: a robust teacher is followed on x', a natural one on x.

    Equivalent to, for the default reduction::

        k = lambda q, p: scale * (p * ((p + log_floor).log() - q.log_softmax(1))).mean()
        k(adv, adv_teacher.softmax(1)), k(clean, clean_teacher.softmax(1))

    Args:
        adv_logits, adv_teacher_logits: [B, C] logits of the adversarial images, the student's and
            the robust teacher's.
        clean_logits, clean_teacher_logits: [B, C] logits of the clean images, the student's and the
            natural teacher's.
        scale: factor on both; the published code has 10 on CIFAR-100.
        reduction, log_floor: as `rslad`.

    Returns: the adversarial and the natural term, 0-dim each.
    Source: Zhao et al. 2022 (ECCV), github.com/zhaoshiji123/MTARD.
    """
    scale = times_parts(scale, reduction)
    adv, clean = (
        ops.distill_kl(logits, teacher, reduction=reduction, log_floor=log_floor, scale=scale)
        for logits, teacher in (
            (adv_logits, adv_teacher_logits),
            (clean_logits, clean_teacher_logits),
        )
    )
    return adv, clean


def negative_entropy(logits: torch.Tensor, log_floor: float = 1e-5) -> torch.Tensor:
    """The mean of p * log(p + log_floor) over B * C, by which B-MTARD compares its teachers."""
    p = logits.softmax(1)
    return (p * (p + log_floor).log()).mean()
