"""The line that shows how training goes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console

from fastard.progress import percent, progress_bar
from fastard.training.hooks import Hook, Step

if TYPE_CHECKING:
    from fastard.training.loop import Trainer

REFRESH_SECONDS = 0.5
_SHOWN = ("loss", "clean", "robust", "rate", "shares")


class ProgressBar(Hook):
    """Loss, accuracies, images/s, shares of time and time left, on a terminal.

    It reads the trainer's means, which waits for the device, at most twice a second.
    """

    def __init__(self, console: Console):
        self._bar = progress_bar(console, *(f"{{task.fields[{name}]}}" for name in _SHOWN))
        self._terminal = console.is_terminal
        self._shown = 0.0

    def on_train_start(self, trainer: Trainer) -> None:
        steps = trainer.steps_per_epoch
        self._task = self._bar.add_task(
            "training",
            total=trainer.config.epochs * steps,
            completed=trainer.epoch * steps + trainer.step,
            loss="",
            clean="",
            robust="",
            rate="",
            shares="",
        )
        self._bar.start()

    def on_step_end(self, trainer: Trainer, step: Step) -> None:
        now = time.perf_counter()
        if not self._terminal or now - self._shown < REFRESH_SECONDS:
            return
        self._shown = now
        means = trainer.means()
        self._bar.update(
            self._task,
            description=f"epoch {step.epoch}/{trainer.config.epochs}",
            completed=(step.epoch - 1) * step.steps + step.step,
            loss=f"loss {means['loss']:.4f}",
            clean=f"clean {percent(means.get('clean_accuracy'))}",
            robust=f"robust {percent(means.get('robust_accuracy'))}",
            rate=f"{means['images_per_s']:.0f} images/s",
            shares=" ".join(
                f"{name} {100 * means[f'{name}_share']:.0f}%"
                for name in ("attack", "teacher", "student")
            ),
        )

    def on_train_end(self, trainer: Trainer) -> None:
        self._bar.stop()
