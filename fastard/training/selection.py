"""How the best epoch of a run is chosen: on which images and by which accuracy."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from fastard.data import Splits
from fastard.evaluation.attacks import Attack
from fastard.evaluation.judge import judge
from fastard.methods.recipes import SELECTIONS
from fastard.training.config import Resolved
from fastard.training.ranks import Ranks


class Selection:
    """Validates epochs and compares them; only a test-selected run ever looks at the test set.

    Args:
        config: a resolved config.
        splits: the data, with a held-out part where the selection is "held-out".
        by: "robust" or "clean", the accuracy that decides, the other one breaking ties, or
            "weighted", their mean, robust accuracy breaking ties.
        ranks: the processes that share the images; as they were started where None.
    """

    def __init__(self, config: Resolved, splits: Splits, by: str, ranks: Ranks | None = None):
        self.config, self.by, self.ranks = config, by, ranks or Ranks()
        self.split = {"held-out": "val", "test-selected": "test", "last": None}[config.selection]
        self.images = getattr(splits, self.split) if self.split else None

    def validate(self, student: nn.Module, epoch: int) -> dict[str, float]:
        """The student's clean and robust accuracy, named after the split; empty when not due."""
        config = self.config
        due = epoch % config.eval_every == 0 or epoch == config.epochs
        due |= config.eval_from is not None and epoch >= config.eval_from
        if self.images is None or not due:
            return {}
        attack = Attack("pgd", f"PGD-{config.val_steps}", config.val_steps, config.val_alpha)
        mine = self.ranks.mine(len(self.images))
        images = self.images if mine is None else self.images.select(mine)
        robust = judge(
            student, images, attack, eps=config.eps, norm=config.norm, seed=config.seed, ids=mine
        )
        clean = judge(student, images)
        # Of all, whether they share the images or each has judged every one.
        right = (int(verdicts.survived.sum()) for verdicts in (clean, robust))
        kept_clean, kept_robust, count = self.ranks.total([*right, len(images)])
        return {
            f"{self.split}_clean": kept_clean / count,
            f"{self.split}_robust": kept_robust / count,
        }

    def is_best(self, row: dict[str, Any], best: dict[str, Any]) -> bool:
        """Whether this epoch beats the best one so far (an empty dict before there is one)."""
        if self.split is None:
            return row["epoch"] == self.config.epochs
        return self._score(row) > self._score(best)

    def describe(self, best: dict[str, Any]) -> str:
        """A sentence on how the best checkpoint was selected."""
        config = self.config
        text = SELECTIONS[config.selection]
        if self.images is None:
            return f"{text}, epoch {best['epoch']}"
        pgd = f"PGD-{config.val_steps}"
        accuracy = {"clean": "clean", "robust": pgd, "weighted": f"mean of clean and {pgd}"}[
            self.by
        ]
        return f"{text}, by {accuracy} accuracy on {len(self.images)} images, epoch {best['epoch']}"

    def _score(self, row: dict[str, Any]) -> tuple[float, float]:
        clean, robust = (row.get(f"{self.split}_{k}", -math.inf) for k in ("clean", "robust"))
        if self.by == "weighted":
            return (clean + robust) / 2, robust
        return (clean, robust) if self.by == "clean" else (robust, clean)
