"""Knowledge distillation's loss (Hinton et al. 2015)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastard import ops
from fastard.losses.reductions import require_share, times_parts


def kd(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    y: torch.Tensor,
    alpha: float,
    temperature: float,
    *,
    reduction: str = "batchmean",
) -> torch.Tensor:
    """Distillation: the student follows the labels and the teacher's tempered output.

    Equivalent to, for the default reduction::

        t = temperature
        (1 - alpha) * F.cross_entropy(student, y) + alpha * t**2 * F.kl_div(
            (student / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean")

    At t = 1 its gradient is that of the cross entropy against the mixed labels
    (1 - alpha) * one_hot(y) + alpha * softmax(teacher).

    Args:
        student_logits, teacher_logits: [B, C]; the gradient flows into both.
        y: [B] int64 labels.
        alpha: weight of the teacher's term, between 0 and 1.
        temperature: t, above 0; the factor t**2 keeps the gradient's scale.
        reduction: of the teacher's term: "batchmean", "mean" (over B * C) or "sum".

    Returns: a 0-dim loss. Raises ValueError for an alpha outside [0, 1] or shapes that differ.
    Source: Hinton et al. 2015 (arXiv 1503.02531).
    """
    require_share(alpha)
    scale = times_parts(temperature**2, reduction)
    soft = ops.distill_kl(student_logits, teacher_logits, temperature, reduction, scale=scale)
    return (1 - alpha) * F.cross_entropy(student_logits, y) + alpha * soft
