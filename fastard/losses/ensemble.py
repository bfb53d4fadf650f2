"""Several teachers as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fastard import checks
from fastard.kinds import unknown

ENSEMBLES = ("probabilities", "logits")


def ensemble_logits(
    teacher_logits: Sequence[torch.Tensor],
    ensemble: str = "probabilities",
    temperature: float = 1.0,
) -> torch.Tensor:
    """Logits z of an ensemble: softmax(z / temperature) is its output.

    Equivalent to: ``t * torch.stack([(z / t).softmax(1) for z in teacher_logits]).mean(0).log()``
    for "probabilities", ``torch.stack(teacher_logits).mean(0)`` for "logits".

    Args:
        teacher_logits: [B, C] each, at least one.
        ensemble: what is averaged, "probabilities" or "logits".
        temperature: t, above 0.

    Returns: [B, C]. Raises ValueError for an unknown ensemble, no teacher or shapes that differ.
    """
    if ensemble not in ENSEMBLES:
        raise unknown("ensemble", ensemble, ENSEMBLES)
    if not teacher_logits:
        raise ValueError("teacher_logits must hold at least one teacher's, but is empty.")
    first, *others = teacher_logits
    for logits in others:
        checks.same_shape(logits, first, "every teacher's logits", "the first teacher")
    if not others:
        return first
    stacked = torch.stack(list(teacher_logits))
    if ensemble == "logits":
        return stacked.mean(0)
    log_sum = (stacked / temperature).log_softmax(2).logsumexp(0)
    return temperature * (log_sum - math.log(len(stacked)))
