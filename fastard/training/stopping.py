"""Asking a run to stop at its next step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stop:
    """A wish that a run ends after the step under way; `reason` is None while there is none."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def ask(self, reason: str) -> None:
        """Asks for the stop."""
        self.reason = reason

    @contextlib.contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Takes SIGTERM for the block as that wish; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            self.ask("SIGTERM")

        before = signal.signal(signal.SIGTERM, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
