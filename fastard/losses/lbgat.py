"""LBGAT's outer loss (Cui et al. 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastard import ops
from fastard.losses.reductions import require_weight


def lbgat(
    adv_logits: torch.Tensor,
    helper_logits: torch.Tensor,
    y: torch.Tensor,
    clean_logits: torch.Tensor | None = None,
    beta: float = 6.0,
) -> torch.Tensor:
    """LBGAT: the student's adversarial logits meet those of a helper that learns on clean images.

    Equivalent to::

        F.mse_loss(adv, helper) + F.cross_entropy(helper, y) + beta * F.kl_div(
            adv.log_softmax(1), clean.softmax(1), reduction="batchmean")

    The gradient flows into all three logits: the helper is trained by both of its terms.

    Args:
        adv_logits, clean_logits: [B, C] student logits of the adversarial and the clean images;
            the clean ones are not needed where beta is 0.
        helper_logits: [B, C] the helper's logits of the clean images.
        y: [B] int64 labels.
        beta: weight of the divergence, at least 0; Cui et al. have 0 and 6.

    Returns: a 0-dim loss. Raises ValueError for a negative beta, for clean_logits missing where
        beta is above 0, or shapes that differ.
    Source: Cui et al. 2021 (arXiv 2011.11164), github.com/dvlab-research/LBGAT.
    """
    require_weight(beta)
    if beta > 0 and clean_logits is None:
        raise ValueError(f"clean_logits must be given where beta is above 0, but is {beta}.")
    loss = F.mse_loss(adv_logits, helper_logits) + F.cross_entropy(helper_logits, y)
    if clean_logits is None or beta == 0:
        return loss
    return loss + ops.distill_kl(adv_logits, clean_logits, scale=beta)
