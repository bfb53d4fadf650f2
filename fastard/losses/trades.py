"""TRADES' outer loss (Zhang et al. 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastard import ops
from fastard.losses.reductions import require_weight


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
    require_weight(beta)
    target = student_clean_logits if target_logits is None else target_logits
    divergence = ops.distill_kl(student_adv_logits, target, reduction="batchmean")
    return F.cross_entropy(student_clean_logits, y) + beta * divergence
