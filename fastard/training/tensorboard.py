"""The run's metrics and adversarial examples for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fastard.training.examples import example_grid
from fastard.training.hooks import Hook, Step

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from fastard.training.loop import Trainer


class TensorBoard(Hook):
    """Scalars of every step and epoch and a grid of adversarial examples an epoch.

    A step's values wait on the device for the end of the epoch, so that no step waits for them.
    """

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._steps: list[tuple[int, float, torch.Tensor]] = []

    def on_step_end(self, trainer: Trainer, step: Step) -> None:
        position = (step.epoch - 1) * step.steps + step.step
        self._steps.append((position, step.lr, step.logs["loss"]))

    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        assert trainer.validated is not None, "an epoch has just ended"
        grid = example_grid(trainer.validated, trainer.splits, trainer.config)
        epoch = metrics["epoch"]
        with trainer.run.kept(trainer.run.tensorboard):
            writer = self._opened(trainer)
            self._write_steps(writer)
            for name, value in metrics.items():
                if isinstance(value, float):
                    writer.add_scalar(f"epoch/{name}", value, epoch)
            writer.add_image("clean, adversarial, difference", grid, epoch)
            writer.flush()

    def on_train_end(self, trainer: Trainer) -> None:
        if self._writer is None and not trainer.run.state.exists():
            # Nothing of this run stays.
            return
        with trainer.run.kept(trainer.run.tensorboard):
            writer = self._opened(trainer)
            self._write_steps(writer)
            writer.close()

    def _opened(self, trainer: Trainer) -> SummaryWriter:
        if self._writer is None:
            # Its import takes a second, which a run that fails at once need not wait for.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(trainer.run.tensorboard))
        return self._writer

    def _write_steps(self, writer: SummaryWriter) -> None:
        waiting, self._steps = self._steps, []
        if not waiting:
            return
        losses = torch.stack([loss.float() for _, _, loss in waiting]).tolist()
        for (position, lr, _), loss in zip(waiting, losses, strict=True):
            writer.add_scalar("step/loss", loss, position)
            writer.add_scalar("step/lr", lr, position)
