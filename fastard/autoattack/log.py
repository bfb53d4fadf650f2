"""What an evaluation says, on the screen and in a file."""

from __future__ import annotations

import warnings
from pathlib import Path

from fastard.autoattack.checks import AutoAttackWarning
from fastard.autoattack.inputs import require_place


class Logger:
    """The official logger: `log` prints a line and appends it to `log_path`, if there is one.

    Attributes:
        flags: the warnings of the evaluation that runs, each once.
    """

    def __init__(self, log_path: str | Path | None = None) -> None:
        require_place(log_path, "log_path")
        self.log_path = log_path
        self.flags: list[str] = []

    def log(self, text: str) -> None:
        print(text)
        self._record(text)

    def warning(self, text: str) -> None:
        """A flag: a Python warning, a line of the file, an entry of `flags`."""
        if text not in self.flags:
            self.flags.append(text)
            self._record(f"Warning: {text}")
            warnings.warn(text, AutoAttackWarning, stacklevel=2)

    def _record(self, text: str) -> None:
        if self.log_path is not None:
            with open(self.log_path, "a", encoding="utf-8") as file:
                file.write(text + "\n")
