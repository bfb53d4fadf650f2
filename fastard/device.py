"""Which device a command runs on, and how long it worked."""

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


class DeviceTimer:
    """Sums the time spent inside ``with timer:``; on CUDA by events, so that nothing waits."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._elapsed = 0.0
        self._started = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> DeviceTimer:
        if self._cuda:
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            self._events.append(pair)
            pair[0].record()
        else:
            self._started = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._cuda:
            self._events[-1][1].record()
        else:
            self._elapsed += time.perf_counter() - self._started

    def reset(self) -> float:
        """Returns the seconds since the last reset and starts again from zero."""
        if self._events:
            torch.cuda.synchronize()
            self._elapsed = sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events.clear()
        seconds, self._elapsed = self._elapsed, 0.0
        return seconds
