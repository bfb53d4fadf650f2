"""AdaIAD's outer loss (Huang et al. 2023)."""

from __future__ import annotations

import torch

from fastard import ops
from fastard.losses.iad import teacher_trust
from fastard.losses.reductions import require_weight


def adaiad(
    adv_logits: torch.Tensor,
    adv_teacher_logits: torch.Tensor,
    y: torch.Tensor,
    clean_logits: torch.Tensor | None = None,
    beta: float = 0.1,
    temperature: float = 30.0,
) -> torch.Tensor:
    """AdaIAD: the student follows the teacher on x', and itself where the teacher is unsure.

    Equivalent to, with k(q, p) the divergence KL(p || q) of each row's softmax::

        w = adv_teacher.softmax(1).gather(1, y[:, None])[:, 0] ** beta
        teacher_term = temperature**2 * k(adv / temperature, adv_teacher / temperature)
        (teacher_term + (1 - w) * k(adv, clean)).mean()

    Without clean logits the second term is left out, as it is in the warm-up. Its gradient flows
    into both of the student's outputs: the target is not detached.

    Args:
        adv_logits: [B, C] student logits of the adversarial images.
        adv_teacher_logits: [B, C] teacher logits of the adversarial images.
        y: [B] int64 labels.
        clean_logits: [B, C] student logits of the clean images.
        beta: exponent of the teacher's confidence, at least 0.
        temperature: t, of the teacher's term alone.

    Returns: a 0-dim loss. Raises ValueError for a negative beta or shapes that differ.
    Source: Huang et al. 2023 (CVPR), github.com/boyellow/AdaAD.
    """
    require_weight(beta)
    loss = ops.distill_kl(adv_logits, adv_teacher_logits, temperature, scale=temperature**2)
    if clean_logits is None:
        return loss
    trust = teacher_trust(adv_teacher_logits, y, beta)
    introspection = ops.distill_kl(adv_logits, clean_logits, reduction="none")
    return loss + ((1 - trust) * introspection).mean()
