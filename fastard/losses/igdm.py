"""IGDM's term: the student's gradient direction follows the teacher's (Lee et al. 2025)."""

from __future__ import annotations

import torch

from fastard import ops
from fastard.kinds import unknown

DISTANCES = ("kl", "l1", "l2")


def igdm(
    plus_logits: torch.Tensor,
    minus_logits: torch.Tensor,
    teacher_plus_logits: torch.Tensor,
    teacher_minus_logits: torch.Tensor,
    distance: str = "kl",
) -> torch.Tensor:
    """IGDM: the student's logits move along delta as the teacher's do.

    Equivalent to, with d = plus - minus of student and teacher, for "kl"::

        F.kl_div(d_student.log_softmax(1), d_teacher.softmax(1), reduction="batchmean")

    Args:
        plus_logits, minus_logits: [B, C] student logits of x + delta and x - delta.
        teacher_plus_logits, teacher_minus_logits: [B, C] those of the teacher.
        distance: "kl" of the softmaxes; "l1" or "l2": the mean over B * C of the differences'
            absolute values or squares.

    Returns: a 0-dim loss. Raises ValueError for an unknown distance or shapes that differ.
    Source: Lee et al. 2025 (ICLR).
    """
    student = plus_logits - minus_logits
    teacher = teacher_plus_logits - teacher_minus_logits
    if distance == "kl":
        return ops.distill_kl(student, teacher)
    if distance not in DISTANCES:
        raise unknown("distance", distance, DISTANCES)
    difference = student - teacher
    return difference.abs().mean() if distance == "l1" else difference.square().mean()
