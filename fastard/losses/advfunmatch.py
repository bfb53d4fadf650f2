"""Function matching's loss, in either direction (Beyer et al. 2021, Wu et al. 2023)."""

from __future__ import annotations

import torch

from fastard import ops
from fastard.kinds import unknown
from fastard.losses.reductions import times_parts

DIRECTIONS = ("teacher||student", "student||teacher")


def advfunmatch(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float = 1.0,
    kl_direction: str = "teacher||student",
    reduction: str = "batchmean",
) -> torch.Tensor:
    """AdvFunMatch: student and teacher agree on the images where they differed most.

    Equivalent to, for "teacher||student" and "batchmean"::

        temperature**2 * F.kl_div((student / temperature).log_softmax(1),
                                  (teacher / temperature).softmax(1), reduction="batchmean")

    Args:
        student_logits, teacher_logits: [B, C] logits of the same images.
        temperature: t; the factor t**2 keeps the gradient's size.
        kl_direction: "teacher||student" is KL(T || S), "student||teacher" KL(S || T).
        reduction: "mean" (over B * C), "batchmean" or "sum".

    Returns: a 0-dim loss. Raises ValueError for an unknown direction or shapes that differ.
    Source: Wu et al. 2023 (arXiv 2305.14700). Direction, temperature and reduction are not
        confirmed by the paper's text.
    """
    if kl_direction not in DIRECTIONS:
        raise unknown("kl_direction", kl_direction, DIRECTIONS)
    pair = (student_logits, teacher_logits)
    if kl_direction == "student||teacher":
        pair = (teacher_logits, student_logits)
    scale = times_parts(temperature**2, reduction)
    return ops.distill_kl(*pair, temperature, reduction, scale=scale)
