"""ARD's outer loss (Goldblum et al. 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastard import ops
from fastard.losses.reductions import require_share, times_parts


def ard(
    adv_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    clean_logits: torch.Tensor | None = None,
    y: torch.Tensor | None = None,
    alpha: float = 1.0,
    temperature: float = 30.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """ARD: the student's adversarial output follows the teacher's clean one, its clean one y.

    Equivalent to, for the default reduction::

        t = temperature
        (1 - alpha) * F.cross_entropy(clean, y) + alpha * t**2 * F.kl_div(
            (adv / t).log_softmax(1), (teacher / t).softmax(1), reduction="mean")

    The defaults are the published code's: its mean runs over B * C. The IAD code has t = 1 and
    "batchmean".

    Args:
        adv_logits: [B, C] student logits of the adversarial images.
        teacher_logits: [B, C] teacher logits of the clean images.
        clean_logits, y: [B, C] student logits of the clean images and [B] int64 labels; not needed
            where alpha is 1.
        alpha: weight of the teacher's term, between 0 and 1.
        temperature: t, above 0.
        reduction: of the teacher's term: "mean" (over B * C), "batchmean" or "sum".

    Returns: a 0-dim loss. Raises ValueError for an alpha outside [0, 1], for clean_logits or y
        missing where alpha is below 1, or shapes that differ.
    Source: Goldblum et al. 2020 (arXiv 1905.09747),
        github.com/goldblum/AdversariallyRobustDistillation.
    """
    require_share(alpha)
    if alpha < 1 and (clean_logits is None or y is None):
        raise ValueError(
            f"clean_logits and y must be given where alpha is below 1, but is {alpha}."
        )
    scale = times_parts(temperature**2, reduction)
    soft = ops.distill_kl(adv_logits, teacher_logits, temperature, reduction, scale=scale)
    if clean_logits is None or y is None or alpha == 1:
        return alpha * soft
    return alpha * soft + (1 - alpha) * F.cross_entropy(clean_logits, y)
