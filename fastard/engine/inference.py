"""`Inference`: a model's eval-mode logits, compiled where that is possible."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastard.engine.program import Program
from fastard.engine.unwrap import Model


class Inference:
    """The eval-mode logits of a teacher or student, with no gradient to follow.

    Equivalent to: ``model.eval(); with torch.no_grad(): logits = model(x)``, in fp32, every
    module's own training flag put back afterwards.

    ``logits = fastard.engine.Inference(teacher, frozen=True)(x)``

    Args:
        model, precision, mean, std, engine, frozen: as `Program`; `frozen` copies the weights once,
            for a teacher that never changes.
    """

    def __init__(
        self,
        model: Model,
        precision: str | None = None,
        *,
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
        engine: bool = True,
        frozen: bool = False,
    ) -> None:
        self.program = Program(model, precision, mean=mean, std=std, engine=engine, frozen=frozen)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images x, detached."""
        with self.program.running(x):
            return self.program.infer_feed(self.program.prepared(x))

    def explain(self, device: str | torch.device | None = None) -> str:
        """What runs where, in which precision, and why."""
        return self.program.explain(device)
