"""DGAD's outer loss (Park and Min 2024)."""

from __future__ import annotations

import torch

from fastard import ops, rows
from fastard.losses.reductions import require_weight


def corrected(teacher_logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Error-corrective label swapping: the true class gets the largest logit, and gives its own.

    Equivalent to, for each row: ``top = row.argmax(); row[[y, top]] = row[[top, y]]``, out of
    place; a row whose largest logit is the label's stays.
    """
    top_value, top = teacher_logits.max(1, keepdim=True)
    label = y[:, None]
    own = teacher_logits.gather(1, label)
    return teacher_logits.scatter(1, top, own).scatter(1, label, top_value)


def dgad(
    adv_logits: torch.Tensor,
    clean_logits: torch.Tensor,
    adv_teacher_logits: torch.Tensor,
    clean_teacher_logits: torch.Tensor,
    y: torch.Tensor,
    beta: float = 1.0,
    nominal_batch: int | None = None,
) -> torch.Tensor:
    """DGAD: where the teacher errs on x, distil x alone, else x'; labels swapped, outputs paired.

    Equivalent to, with M the samples whose clean teacher logits have another maximum than y, k the
    divergence KL(teacher || student) of each row and swapped teacher logits (`corrected`)::

        clean_term = k(clean, clean_teacher)[M].mean()
        adv_term = k(adv, adv_teacher)[~M].mean()
        (len(M) * clean_term + (nominal_batch - len(M)) * adv_term) / nominal_batch
            + beta * F.mse_loss(adv.softmax(1), clean.softmax(1))

    A term without samples is 0. The gradient of the last term flows into both outputs.

    Args:
        adv_logits, clean_logits: [B, C] student logits.
        adv_teacher_logits, clean_teacher_logits: [B, C] teacher logits.
        y: [B] int64 labels.
        beta: weight of the last term, at least 0.
        nominal_batch: the batch size of the published formula, also for a smaller last batch; None:
            B.

    Returns: a 0-dim loss. Raises ValueError for a negative beta or shapes that differ.
    Source: Park and Min 2024 (ECCV), github.com/kunsaram01/DGAD; its formula for MobileNetV2
        multiplies by the adversarial term where it adds it elsewhere, which is not followed.
    """
    require_weight(beta)
    parts = rows.parts()
    count = parts * len(y)
    size = count if nominal_batch is None else nominal_batch
    clean_kl = ops.distill_kl(clean_logits, corrected(clean_teacher_logits, y), reduction="none")
    adv_kl = ops.distill_kl(adv_logits, corrected(adv_teacher_logits, y), reduction="none")
    # A mask instead of indexing: the number of such samples stays on the device.
    wrong = (clean_teacher_logits.argmax(1) != y).to(clean_kl.dtype)
    errors = rows.total(wrong.sum())
    adv_share = (size - errors) / size / (count - errors).clamp(min=1)
    pairing = (adv_logits.softmax(1) - clean_logits.softmax(1)).square().mean()
    # The mean over the parts is the whole batch's loss.
    terms = (wrong * clean_kl).sum() / size + adv_share * ((1 - wrong) * adv_kl).sum()
    return parts * terms + beta * pairing
