"""The losses that Auto-PGD raises, each as the official code writes it and as a fused kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastard import ops
from fastard.attacks.search import Given, RowObjective

# Loss -> the classes it needs at least.
FEWEST = {"ce": 2, "dlr": 3, "dlr-targeted": 4, "ce-targeted": 2, "ce-targeted-cfts": 2}


def check_classes(loss: str, classes: int) -> None:
    """Refuses a loss that needs more classes than the model has."""
    if classes < FEWEST[loss]:
        raise ValueError(
            f"loss {loss!r} needs at least {FEWEST[loss]} classes, but the model has {classes}."
        )


def _dlr(logits: Tensor, y: Tensor) -> Tensor:
    ranked, order = logits.sort(dim=1)
    leads = (order[:, -1] == y).float()
    row = torch.arange(len(logits), device=logits.device)
    # Both candidates weighted, not one selected: so the official gradient is rounded.
    gap = logits[row, y] - ranked[:, -2] * leads - ranked[:, -1] * (1.0 - leads)
    return -gap / (ranked[:, -1] - ranked[:, -3] + 1e-12)


def _targeted_dlr(logits: Tensor, y: Tensor, goals: Tensor) -> Tensor:
    ranked, _ = logits.sort(dim=1)
    row = torch.arange(len(logits), device=logits.device)
    spread = ranked[:, -1] - 0.5 * (ranked[:, -3] + ranked[:, -4]) + 1e-12
    return -(logits[row, y] - logits[row, goals]) / spread


def _seed(
    target: str, kind: str, **options: Any
) -> Callable[[Tensor, Given], tuple[Tensor, Tensor]]:
    """`logit_loss` towards what is given as `target`, with the labels where it is targeted DLR."""

    def seed(logits: Tensor, given: Given) -> tuple[Tensor, Tensor]:
        labels = given["y"] if kind == "dlr" and target != "y" else None
        loss, dlogits = ops.logit_loss(logits, given[target], kind, labels=labels, **options)
        return loss, dlogits

    return seed


def objective(loss: str, y: Tensor, goals: Tensor | None = None) -> RowObjective:
    """The loss of each sample, to be raised.

    Args:
        loss: "ce", "dlr"; "dlr-targeted" (Croce & Hein 2020) and "ce-targeted", towards `goals`;
            "ce-targeted-cfts", towards y.
        y, goals: int64 [B].
    """
    given = {"y": y} if goals is None else {"y": y, "goals": goals}
    if loss == "ce":
        return RowObjective(
            lambda z: F.cross_entropy(z, y, reduction="none"), _seed("y", "ce"), given, loss
        )
    if loss == "dlr":
        return RowObjective(lambda z: _dlr(z, y), _seed("y", "dlr"), given, loss)
    if loss == "dlr-targeted":
        assert goals is not None
        seed = _seed("goals", "dlr", targeted=True)
        return RowObjective(lambda z: _targeted_dlr(z, y, goals), seed, given, loss)
    name = "y" if loss == "ce-targeted-cfts" else "goals"
    aim = given[name]
    return RowObjective(
        lambda z: -1.0 * F.cross_entropy(z, aim, reduction="none"),
        _seed(name, "ce", targeted=True), given, loss,
    )  # fmt: skip
