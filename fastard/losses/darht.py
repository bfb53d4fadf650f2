"""DARHT's outer loss (Deng et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastard import ops


def darht(
    rows: torch.Tensor,
    teacher_logits: Sequence[torch.Tensor],
    temperature: float = 1.0,
    weights: Sequence[float] | None = None,
) -> torch.Tensor:
    """DARHT: each row of the student's logit map follows the teacher whose row it is.

    Equivalent to, with k the divergence averaged over the batch::

        sum(w * temperature**2 * k(rows[:, i] / temperature, teacher_logits[i] / temperature)
            for i, w in enumerate(weights))

    Args:
        rows: [B, K, C], the student's logit map.
        teacher_logits: K of [B, C].
        temperature: t; the factor t**2 keeps the gradient's size.
        weights: one for each teacher; None: 1 / K.

    Returns: a 0-dim loss. Raises ValueError for a number of teachers or weights other than K, or
        shapes that differ.
    Source: Deng et al. 2024 (arXiv 2402.15586). One term for each teacher against the student's own
        copy of its logits is stated there; weights, temperature and divergence are not confirmed by
        the paper's text.
    """
    count = rows.shape[1]
    if len(teacher_logits) != count:
        raise ValueError(
            f"teacher_logits must be those of {count} teachers, one for each row of the map, but "
            f"are of {len(teacher_logits)}."
        )
    weights = [1 / count] * count if weights is None else weights
    if len(weights) != count:
        raise ValueError(f"weights must be {count}, one for each teacher, but are {len(weights)}.")
    terms = [
        weight * ops.distill_kl(rows[:, at], logits, temperature, scale=temperature**2)
        for at, (weight, logits) in enumerate(zip(weights, teacher_logits, strict=True))
    ]
    return torch.stack(terms).sum()
