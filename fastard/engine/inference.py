"""`Inference`: a model's eval-mode logits, compiled where that is possible."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastard.engine import capture
from fastard.engine.program import Program
from fastard.engine.recorder import Lane, Tensors
from fastard.engine.unwrap import Model


class Inference:
    """The eval-mode logits of a teacher or student, with no gradient to follow.

    Equivalent to: ``model.eval(); with torch.no_grad(): logits = model(x)``, in fp32, every
    module's own training flag put back afterwards.

    ``logits = fastard.engine.Inference(teacher, frozen=True)(x)``

    Args:
        model, precision, mean, std, engine, frozen, capture: as `Program`; `frozen` copies the
            weights once, for a teacher that never changes.
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
        capture: str = "auto",
    ) -> None:
        self.program = Program(
            model, precision, mean=mean, std=std, engine=engine, frozen=frozen, capture=capture
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images x, detached."""
        program = self.program

        def work(held: capture.Values, lane: Lane | None) -> Tensors:
            program.renew()
            return {"logits": program.infer_feed(program.prepared(held["x"]))}

        with program.running(x, renewed=False):
            return capture.run([program], "inference", work, {"x": x.detach()})["logits"]

    def explain(self, device: str | torch.device | None = None) -> str:
        """What runs where, in which precision, and why."""
        return self.program.explain(device)
