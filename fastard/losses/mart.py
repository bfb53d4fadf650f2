"""MART's outer loss (Wang et al. 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastard import ops
from fastard.losses.reductions import require_weight


def mart(
    clean_logits: torch.Tensor,
    adv_logits: torch.Tensor,
    y: torch.Tensor,
    beta: float = 5.0,
    log_floor: float = 1e-12,
) -> torch.Tensor:
    """MART: boosted cross entropy, and a divergence that weighs misclassified images more.

    Equivalent to, p and q the softmaxes of the clean and adversarial logits, k the likeliest wrong
    class of q, for log_floor = c::

        bce = F.cross_entropy(adv, y) - (1.0001 - q[k] + c).log().mean()
        kl = (p * (p.log() - (q + c).log())).sum(1)
        bce + beta * (kl * (1.0000001 - p[y])).mean()

    Nothing is detached, as in the published code: the gradient flows through p, its weight
    included. With ``log_floor=0`` the divergence is exact and fused; the published 1e-12 stops the
    gradient of classes whose q is smaller.

    Args:
        clean_logits, adv_logits: [B, C] student logits of the clean and the adversarial images.
        y: [B] int64 labels.
        beta: weight of the divergence, at least 0: 5 for ResNet-18, 6 for WRN-34-10 (Wang et al.).
        log_floor: added to the adversarial probabilities inside logarithms, at least 0.

    Returns: a 0-dim loss. Raises ValueError for a negative beta or log_floor or shapes that differ.
    Source: Wang et al. 2020 (ICLR), github.com/YisenWang/MART.
    """
    require_weight(beta)
    require_weight(log_floor, "log_floor")
    # In bf16 1.0001 would be 1.
    clean_logits, adv_logits = (
        z if z.dtype == torch.float64 else z.float() for z in (clean_logits, adv_logits)
    )
    q = adv_logits.softmax(1)
    wrong = q.scatter(1, y[:, None], -1.0).amax(1)
    boosted = F.cross_entropy(adv_logits, y) - (1.0001 - wrong + log_floor).log().mean()
    if log_floor == 0:
        divergence = ops.distill_kl(adv_logits, clean_logits, reduction="none")
    else:
        # From log p, so that the gradient is finite where p underflows.
        log_p = clean_logits.log_softmax(1)
        divergence = (log_p.exp() * (log_p - (q + log_floor).log())).sum(1)
    trusted = clean_logits.softmax(1).gather(1, y[:, None]).squeeze(1)
    return boosted + beta * (divergence * (1.0000001 - trusted)).mean()
