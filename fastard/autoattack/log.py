"""What an evaluation says, on the screen and in a file."""

from __future__ import annotations

from pathlib import Path


class Logger:
    """The official logger: `log` prints a line and appends it to `log_path`, if there is one."""

    def __init__(self, log_path: str | Path | None = None) -> None:
        self.log_path = log_path

    def log(self, text: str) -> None:
        print(text)
        self.record(text)

    def record(self, text: str) -> None:
        """Appends a line without printing it."""
        if self.log_path is not None:
            with open(self.log_path, "a", encoding="utf-8") as file:
                file.write(text + "\n")
