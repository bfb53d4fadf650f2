"""Progress bars of the long-running commands, and the running means they show."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET = Console(quiet=True)


def progress_bar(console: Console, *columns: str) -> Progress:
    """A progress display with the given text columns between the bar and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *(TextColumn(column) for column in columns),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Without a terminal rich would print the finished bar as lines of text.
        disable=not console.is_terminal,
    )


def percent(value: float | None) -> str:
    """An accuracy in percent, or a dash."""
    return "-" if value is None else f"{100 * value:.2f}%"


class Tally:
    """Sums of an epoch's logs, kept on the device so that no step waits for it.

    `bad_step` is the first step, counted from 1, whose loss was not finite; 0 while there is none.
    """

    def __init__(self, device: torch.device):
        self.samples = self.steps = 0
        self.sums: dict[str, torch.Tensor] = {}
        self.bad_step = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, logs: dict[str, torch.Tensor], samples: int) -> None:
        self.samples += samples
        self.steps += 1
        for name, value in logs.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.double() * samples
        bad = ~logs["loss"].isfinite() & (self.bad_step == 0)
        self.bad_step = torch.where(bad, self.steps, self.bad_step)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs."""
        return {
            "samples": self.samples,
            "steps": self.steps,
            "sums": dict(self.sums),
            "bad_step": self.bad_step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` returned."""
        device = self.bad_step.device
        self.samples, self.steps = state["samples"], state["steps"]
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.bad_step = state["bad_step"].to(device)

    def means(self) -> dict[str, float]:
        """The means per sample so far; waits for the device."""
        return {name: float(value) / self.samples for name, value in self.sums.items()}
