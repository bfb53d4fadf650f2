"""What a trainer tells while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from fastard.training.loop import Trainer


@dataclass(frozen=True)
class Step:
    """One batch trained on.

    `epoch` and `step` count from 1, `steps` is how many an epoch has. `logs` are the method's
    0-dim tensors, which stay on the device: reading one waits for it. `metrics` is None but at the
    last step of an epoch, where it is the epoch's row of metrics.jsonl.
    """

    epoch: int
    step: int
    steps: int
    lr: float
    samples: int
    logs: dict[str, torch.Tensor]
    metrics: dict[str, Any] | None = None


class Hook:
    """Base of what `Trainer(config, hooks=[...])` calls; override what is needed.

    Hooks are called in the order in which they are given. They may read the trainer (`student`,
    `method`, `splits`, `epoch`, `config`) and call `trainer.stop.ask("reason")` to end the run
    after the step under way; what one raises ends the run.
    """

    def on_train_start(self, trainer: Trainer) -> None:
        """Before the first step, of a resumed run as well."""

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        """Before the first step of epoch `epoch`, or the first after a resumption within it."""

    def on_step_end(self, trainer: Trainer, step: Step) -> None:
        """After each batch's optimiser steps."""

    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """After validation, when the epoch's files are written."""

    def on_train_end(self, trainer: Trainer) -> None:
        """When training ends: finished, stopped or failed."""
