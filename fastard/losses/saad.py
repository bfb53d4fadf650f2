"""SAAD's outer loss and the entropies that weigh it (Lee and Chung 2026)."""

from __future__ import annotations

import torch

from fastard import ops, rows
from fastard.kinds import unknown

ENTROPIES = ("shannon", "renyi")


def entropy(logits: torch.Tensor, kind: str = "shannon", order: float = 2.0) -> torch.Tensor:
    """The entropy of each row's softmax, [B], in nats.

    Equivalent to: ``-(p * p.log()).sum(1)``, or, for "renyi" of an order other than 1,
    ``(p**order).sum(1).log() / (1 - order)``.
    """
    log_p = logits.log_softmax(1)
    if kind == "shannon":
        return -(log_p.exp() * log_p).sum(1)
    if kind != "renyi":
        raise unknown("entropy", kind, ENTROPIES)
    return (order * log_p).logsumexp(1) / (1 - order)


def saad(
    adv_logits: torch.Tensor,
    other_logits: torch.Tensor,
    adv_teacher_logits: torch.Tensor,
    other_teacher_logits: torch.Tensor,
    clean_logits: torch.Tensor | None = None,
    clean_teacher_logits: torch.Tensor | None = None,
    *,
    gradient_weight: float | torch.Tensor = 1.0,
    clean_weight: float = 0.0,
    entropy_scale: float = 5.0,
    entropy_kind: str = "shannon",
    renyi_order: float = 2.0,
) -> torch.Tensor:
    """SAAD: samples of which the teacher is unsure at x' weigh more.

    Equivalent to, with k the divergence KL(teacher || student) of each row::

        h = entropy(adv_teacher)
        w = entropy_scale * (h - h.min())
        gradient_term = k(adv - other, adv_teacher - other_teacher)
        clean_term = (1 - w / (w.max() + 1e-8)) * k(clean, clean_teacher)
        (w * (k(adv, adv_teacher) + gradient_weight * gradient_term)
            + clean_weight * clean_term).mean()

    Args:
        adv_logits, adv_teacher_logits: [B, C] logits of x' = x + delta.
        other_logits, other_teacher_logits: [B, C] those of x - delta, as the published code has
            it, or of x, as the paper's equation 11 has it.
        clean_logits, clean_teacher_logits: [B, C] those of x; needed for a clean weight above 0.
        gradient_weight: the paper's alpha, times the share of the epochs that are over.
        clean_weight: the code's beta.
        entropy_scale, entropy_kind, renyi_order: of the weights.

    Returns: a 0-dim loss. Raises ValueError for an unknown entropy, shapes that differ or clean
        logits that are missing.
    Source: Lee and Chung 2026 (TMLR), github.com/HongsinLee/saad.
    """
    h = entropy(adv_teacher_logits.detach(), entropy_kind, renyi_order)
    weight = entropy_scale * (h - rows.least(h.amin()))
    divergences = ops.distill_kl(adv_logits, adv_teacher_logits, reduction="none")
    slopes = ops.distill_kl(
        adv_logits - other_logits, adv_teacher_logits - other_teacher_logits, reduction="none"
    )
    total = weight * (divergences + gradient_weight * slopes)
    if clean_weight:
        if clean_logits is None or clean_teacher_logits is None:
            raise ValueError(f"clean logits must be given where clean_weight is {clean_weight}.")
        clean = ops.distill_kl(clean_logits, clean_teacher_logits, reduction="none")
        total = total + clean_weight * (1 - weight / (rows.most(weight.amax()) + 1e-8)) * clean
    return total.mean()
