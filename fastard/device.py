"""Which device a command runs on, and how long it worked at what."""

from __future__ import annotations

import re
import time
from types import TracebackType

import torch


def resolve_device(name: str) -> torch.device:
    """The device of this name: "cpu", "cuda", "cuda:INDEX", or "auto", CUDA where there is one.

    Raises ValueError for another name, or a CUDA device that torch does not see.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", name)
    if match is None:
        raise ValueError(f"device must be auto, cpu or cuda[:index], but is {name!r}.")
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, but torch sees no CUDA device here.")
    if match[1] is None:
        return torch.device("cuda")
    if int(match[1]) >= (count := torch.cuda.device_count()):
        raise ValueError(
            f"device is {name!r}, but torch sees {count} CUDA devices here, counted from 0."
        )
    return torch.device("cuda", int(match[1]))


class Clock:
    """Seconds by section: ``with clock.section("attack"):``; an inner section stops the outer one.

    On CUDA the borders are events, so that nothing waits before `read`.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._open: list[str] = []
        self._seconds: dict[str, float] = {}
        self._since = 0.0
        self._borders: list[tuple[str | None, torch.cuda.Event]] = []

    def section(self, name: str) -> Section:
        """A context manager, to be entered as often as one likes, whose time counts as `name`."""
        return Section(self, name)

    def read(self) -> dict[str, float]:
        """The seconds of each section since the last `read`; waits for the device."""
        if self._borders:
            self._borders[-1][1].synchronize()
            pairs = zip(self._borders, self._borders[1:], strict=False)
            for (name, begin), (_, end) in pairs:
                if name is not None:
                    self._add(name, begin.elapsed_time(end) / 1000)
            # The last border may begin a section that is still open.
            self._borders = self._borders[-1:]
        seconds, self._seconds = self._seconds, {}
        return seconds

    def enter(self, name: str) -> None:
        """Begins a section inside the one that is open."""
        self._border(name)
        self._open.append(name)

    def leave(self) -> None:
        """Ends the innermost section."""
        self._border(self._open[-2] if len(self._open) > 1 else None)
        self._open.pop()

    def _border(self, following: str | None) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._borders.append((following, event))
            return
        now = time.perf_counter()
        if self._open:
            self._add(self._open[-1], now - self._since)
        self._since = now

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


class Section:
    """One section of a `Clock`."""

    def __init__(self, clock: Clock, name: str):
        self._clock, self._name = clock, name

    def __enter__(self) -> Section:
        self._clock.enter(self._name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clock.leave()
