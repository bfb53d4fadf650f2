"""How an attack's cost grows with its steps, the batch, the images' side and the classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from . import attack_contests, timing
from .attack_contests import PUBLISHED
from .case import Case
from .record import OURS, Line, Series

FIELDS = {"steps": "steps", "batch": "batch", "image side": "side", "classes": "classes"}


def fitted(over: str, x: Sequence[float], seconds: Sequence[float]) -> Series:
    """seconds ~ x ** exponent, by least squares of the logarithms."""
    a, b = [math.log(v) for v in x], [math.log(v) for v in seconds]
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    spread = sum((v - mean_a) ** 2 for v in a)
    slope = sum((v - mean_a) * (w - mean_b) for v, w in zip(a, b, strict=True)) / spread
    off = max(abs(math.expm1(w - mean_b - slope * (v - mean_a))) for v, w in zip(a, b, strict=True))
    return Series(over, [float(v) for v in x], list(seconds), slope, off)


def sized(case: Case, over: str, size: int) -> Case:
    """The case at one size."""
    if over in ("steps", "batch"):
        return dataclasses.replace(case, **{over: size})
    return dataclasses.replace(case, settings={**case.settings, FIELDS[over]: size})


def measure(case: Case) -> Iterator[Line]:
    """A line for fastard and one for the published loop, each with its series."""
    over, sizes = case.settings["over"], case.settings["sizes"]
    seconds: dict[str, list[float]] = {OURS: [], PUBLISHED: []}
    lines: dict[str, Line] = {}
    for size in sizes:
        small = sized(case, over, size)
        for line in attack_contests.measure(small):
            if line.seconds is None:
                # One size that was not measured leaves no series.
                yield dataclasses.replace(line, case=case.name)
                return
            seconds[line.who].append(line.seconds.min)
            lines[line.who] = line
    hidden = {"batch": None} if over == "batch" else {"steps": None} if over == "steps" else {}
    for who, line in lines.items():
        assert not isinstance(line, timing.Watch)
        yield dataclasses.replace(line, series=fitted(over, sizes, seconds[who]), **hidden)  # type: ignore[type-var, arg-type]
