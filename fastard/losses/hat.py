"""HAT's outer loss (Rade & Moosavi-Dezfooli 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastard.losses.reductions import require_weight
from fastard.losses.trades import trades


def hat(
    clean_logits: torch.Tensor,
    adv_logits: torch.Tensor,
    helper_logits: torch.Tensor,
    y: torch.Tensor,
    helper_labels: torch.Tensor,
    beta: float = 2.5,
    gamma: float = 0.5,
) -> torch.Tensor:
    """HAT: TRADES plus the cross entropy of images moved further, under a helper's labels.

    Equivalent to: ``losses.trades(clean, adv, y, beta) + gamma * F.cross_entropy(helper,
    helper_labels)``

    Args:
        clean_logits, adv_logits: [B, C] student logits of the clean and the adversarial images; the
            gradient flows into both.
        helper_logits: [B, C] student logits of x + h * (x' - x).
        y: [B] int64 labels.
        helper_labels: [B] int64, what a standard network says of x'.
        beta, gamma: weights of the divergence and of the helper's term, at least 0.

    Returns: a 0-dim loss. Raises ValueError for a negative weight or shapes that differ.
    Source: Rade & Moosavi-Dezfooli 2022 (ICLR), github.com/imrahulr/hat.
    """
    require_weight(gamma, "gamma")
    helped = F.cross_entropy(helper_logits, helper_labels)
    return trades(clean_logits, adv_logits, y, beta) + gamma * helped
