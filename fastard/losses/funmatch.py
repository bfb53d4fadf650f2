"""Function matching's loss (Beyer et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastard import ops


def funmatch(
    student_logits: torch.Tensor, teacher_logits: Sequence[torch.Tensor], temperature: float = 1.0
) -> torch.Tensor:
    """FunMatch: the sum of the divergences from every teacher, all on the same view; no labels.

    Equivalent to::

        t = temperature
        sum(t**2 * F.kl_div((student / t).log_softmax(1), (z / t).softmax(1),
                            reduction="batchmean") for z in teacher_logits)

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C] of each teacher, at least one.
        temperature: t, above 0.

    Returns: a 0-dim loss. Raises ValueError for no teacher or shapes that differ.
    Source: Beyer et al. 2021 (arXiv 2106.05237), github.com/google-research/big_vision.
    """
    if not teacher_logits:
        raise ValueError("teacher_logits must hold at least one teacher's, but is empty.")
    first, *others = (
        ops.distill_kl(student_logits, z, temperature, scale=temperature**2) for z in teacher_logits
    )
    for divergence in others:
        first = first + divergence
    return first
