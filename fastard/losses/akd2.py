"""AKD2's outer loss (Chen et al. 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastard import ops
from fastard.losses.reductions import require_weight


def akd2(
    adv_logits: torch.Tensor,
    robust_logits: torch.Tensor,
    standard_logits: torch.Tensor,
    y: torch.Tensor,
    label_weight: float = 0.25,
    robust_weight: float = 0.5,
    standard_weight: float = 0.25,
    temperature: float = 1.0,
) -> torch.Tensor:
    """AKD2: labels, a robust and a standard teacher, all on adversarial images.

    Equivalent to, l0 to l2 being the three weights::

        t = temperature
        kl = lambda teacher: t**2 * F.kl_div(
            (adv / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean")
        l0 * F.cross_entropy(adv, y) + l1 * kl(robust) + l2 * kl(standard)

    The defaults are the IAD code's. The authors' own code has 0.3, 0.6, 0.1 and t = 2, and the soft
    cross entropy in place of the divergence: the same gradient.

    Args:
        adv_logits: [B, C] student logits of the adversarial images.
        robust_logits, standard_logits: [B, C] teachers' logits of the same images.
        y: [B] int64 labels.
        label_weight, robust_weight, standard_weight: at least 0.
        temperature: t, above 0.

    Returns: a 0-dim loss. Raises ValueError for a negative weight or shapes that differ.
    Source: Chen et al. 2021 (ICLR, "Robust overfitting may be mitigated by properly learned
        smoothening"), github.com/VITA-Group/Alleviate-Robust-Overfitting; github.com/ZFancy/IAD.
    """
    require_weight(label_weight, "label_weight")
    require_weight(robust_weight, "robust_weight")
    require_weight(standard_weight, "standard_weight")
    t2 = temperature**2
    robust = ops.distill_kl(adv_logits, robust_logits, temperature, scale=t2)
    standard = ops.distill_kl(adv_logits, standard_logits, temperature, scale=t2)
    labels = label_weight * F.cross_entropy(adv_logits, y)
    return labels + robust_weight * robust + standard_weight * standard
