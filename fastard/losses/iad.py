"""IAD's outer losses (Zhu et al. 2022): how far a teacher is trusted, IAD-I and IAD-II."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastard import ops
from fastard.losses.reductions import require_share, require_weight


def teacher_trust(teacher_logits: torch.Tensor, y: torch.Tensor, beta: float = 0.1) -> torch.Tensor:
    """w of IAD: the teacher's probability of the label on the adversarial image, to the power beta.

    Equivalent to: ``teacher.softmax(1)[range(len(y)), y] ** beta``

    Args:
        teacher_logits: [B, C] teacher logits of the adversarial images.
        y: [B] int64 labels.
        beta: at least 0.

    Returns: [B], without gradient. Raises ValueError for a negative beta.
    """
    require_weight(beta)
    probabilities = teacher_logits.detach().softmax(1)
    return probabilities.gather(1, y[:, None]).squeeze(1) ** beta


def iad_1(
    adv_logits: torch.Tensor,
    clean_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    trust: torch.Tensor,
    temperature: float = 1.0,
    *,
    weigh_teacher: bool = False,
) -> torch.Tensor:
    """IAD-I after its warm-up: what the teacher cannot be trusted in, the student's own output is.

    Equivalent to, v being `trust` with weigh_teacher (the paper) and 1 without (the published
    code)::

        t, w = temperature, trust
        kl = lambda q, p: F.kl_div(q.log_softmax(1), p.softmax(1), reduction="none").sum(1)
        (v * t**2 * kl(adv / t, teacher / t) + (1 - w) * kl(adv, clean)).mean()

    The gradient flows into both logits of the second divergence: its target is not detached.

    Args:
        adv_logits, clean_logits: [B, C] student logits of the adversarial and the clean images.
        teacher_logits: [B, C] teacher logits of the clean images.
        trust: [B], w of `teacher_trust`.
        temperature: t of the teacher's term, above 0.

    Returns: a 0-dim loss. Raises ValueError for shapes that differ.
    Source: Zhu et al. 2022 (arXiv 2106.04928), github.com/ZFancy/IAD, IAD-I.py.
    """
    taught = ops.distill_kl(adv_logits, teacher_logits, temperature, "none", scale=temperature**2)
    own = ops.distill_kl(adv_logits, clean_logits, reduction="none")
    return ((trust if weigh_teacher else 1.0) * taught + (1 - trust) * own).mean()


def iad_2(
    adv_logits: torch.Tensor,
    clean_logits: torch.Tensor,
    robust_logits: torch.Tensor,
    standard_logits: torch.Tensor,
    y: torch.Tensor,
    trust: torch.Tensor,
    robust_weight: float = 0.5,
    standard_weight: float = 0.25,
    temperature: float = 1.0,
) -> torch.Tensor:
    """IAD-II after its warm-up: labels, a robust teacher as far as trusted, a standard teacher.

    Equivalent to::

        t, w, a1, a2 = temperature, trust, robust_weight, standard_weight
        kl = lambda q, p: F.kl_div(q.log_softmax(1), p.softmax(1), reduction="none").sum(1)
        first = w * kl(adv / t, robust / t) + (1 - w) * kl(adv, clean)
        ((1 - a1 - a2) * F.cross_entropy(adv, y)
         + t**2 * (a1 * first + a2 * kl(adv / t, standard / t)).mean())

    Args:
        adv_logits, clean_logits: [B, C] student logits; the gradient flows into both.
        robust_logits, standard_logits: [B, C] teachers' logits of the adversarial images.
        y: [B] int64 labels.
        trust: [B], w of `teacher_trust`.
        robust_weight, standard_weight: a1 and a2 (alpha1, alpha2), their sum at most 1.
        temperature: t, above 0.

    Returns: a 0-dim loss. Raises ValueError for weights that sum to more than 1 or shapes that
        differ.
    Source: Zhu et al. 2022 (arXiv 2106.04928), github.com/ZFancy/IAD, IAD-II.py.
    """
    require_share(robust_weight + standard_weight, "robust_weight + standard_weight")
    t2 = temperature**2
    robust = ops.distill_kl(adv_logits, robust_logits, temperature, "none", scale=t2)
    own = ops.distill_kl(adv_logits, clean_logits, reduction="none", scale=t2)
    standard = ops.distill_kl(adv_logits, standard_logits, temperature, scale=t2)
    first = (trust * robust + (1 - trust) * own).mean()
    labels = (1 - robust_weight - standard_weight) * F.cross_entropy(adv_logits, y)
    return labels + robust_weight * first + standard_weight * standard
