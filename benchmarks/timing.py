"""The timer of every benchmark: interleaved rounds on machines that others use too.

Contestants take turns, in both orders, so that clocks and neighbours hit all alike. What is
reported is the minimum and the median with the spread of the rounds; on a machine that others keep
busy no result is called stable.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from .record import Seconds

Run = TypeVar("Run")
Clock = Callable[[Any], tuple[float, Any]]
STAT = Path("/proc/stat")
# Beyond these no result is called stable.
MOST_OTHERS, MOST_SPREAD, LEAST_ROUNDS = 0.05, 0.15, 3


class Crashed(Exception):
    """A loop raised while it was timed; `who` is its name, the cause what it raised."""

    def __init__(self, who: str, error: Exception) -> None:
        super().__init__(f"{who}: {type(error).__name__}: {error}")
        self.who = who


def by_host(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of a call, by the host's clock."""
    begun = time.perf_counter()
    result = run()
    return time.perf_counter() - begun, result


def by_events(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of a call, by CUDA events."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    result = run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3, result


def clock_of(device: str) -> Clock:
    return by_events if device == "cuda" else by_host


def turns(
    loops: Mapping[str, Run], clock: Clock = by_host, *, rounds: int, seconds: float = 0.0,
    most: float = math.inf, warm_up: int = 1, warm_seconds: float = 0.0,
    before: Callable[[], Any] | None = None,
) -> tuple[dict[str, list[float]], dict[str, Any]]:  # fmt: skip
    """Every round's seconds of each loop, taken in turn, and each loop's last result.

    At least `rounds` rounds and as many as `seconds` allow, but after `most` seconds no further one
    begins; before them at least `warm_up` rounds and `warm_seconds` that do not count. `before` is
    called, untimed, before each loop.

    Raises:
        Crashed: a loop raised.
    """
    samples: dict[str, list[float]] = {name: [] for name in loops}
    results: dict[str, Any] = {}
    turn, cold = 0, True
    begun = time.perf_counter()
    with _no_collection():
        while True:
            if cold and turn >= warm_up and time.perf_counter() - begun >= warm_seconds:
                cold, turn, begun = False, 0, time.perf_counter()
            spent = time.perf_counter() - begun
            if not cold and turn and (turn >= rounds and spent >= seconds or spent >= most):
                return samples, results
            for name in sorted(loops, reverse=turn % 2 == 1):
                if before is not None:
                    before()
                try:
                    took, results[name] = clock(loops[name])
                except Exception as error:
                    raise Crashed(name, error) from error
                if not cold:
                    samples[name].append(took)
            turn += 1


@contextmanager
def _no_collection() -> Any:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def summary(values: list[float], calls: int = 1) -> Seconds:
    """Minimum, median and the middle half's range over the median; each value is of a call."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    median = statistics.median(values)
    return Seconds(min(values), median, (high - low) / median, len(values), calls)


def calls_for(run: Callable[[], Any], who: str = "", least: float = 2e-4) -> int:
    """How many calls make one sample long enough for the clock; raises Crashed as `turns` does."""
    try:
        run()
        return max(1, int(least / max(by_host(run)[0], 1e-7)))
    except Exception as error:
        raise Crashed(who, error) from error


def repeated(run: Callable[[], Any], calls: int) -> Callable[[], None]:
    def sample() -> None:
        for _ in range(calls):
            run()

    return sample


def interleaved(
    candidates: dict[str, Callable[[], Any]], *, seconds: float = 4.0, least_rounds: int = 20
) -> dict[str, dict[str, float]]:
    """Seconds per call of each candidate, measured in turn."""
    calls = {name: calls_for(run) for name, run in candidates.items()}
    loops = {name: repeated(run, calls[name]) for name, run in candidates.items()}
    samples, _ = turns(loops, rounds=least_rounds, seconds=seconds)
    return {name: plain([v / calls[name] for v in s]) for name, s in samples.items()}


def plain(values: list[float]) -> dict[str, float]:
    """Minimum, median and the number of rounds, as the older records hold them."""
    return {"min": min(values), "median": statistics.median(values), "rounds": len(values)}


def idle_share(seconds: float = 0.3) -> float | None:
    """The share of all cores that was idle for a moment; None where the system does not say."""
    if not STAT.exists():
        return None
    before = _ticks()
    time.sleep(seconds)
    spent = [b - a for a, b in zip(before, _ticks(), strict=True)]
    return round((spent[3] + spent[4]) / max(sum(spent), 1), 3)


def _ticks() -> list[int]:
    return [int(v) for v in STAT.read_text().splitlines()[0].split()[1:]]


def _own() -> float:
    """Seconds of all cores that this process and its ended children have used."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(who) for who in whose]
    return sum(u.ru_utime + u.ru_stime for u in used)


class Watch:
    """What others did on this machine during a block: `others`, their share of all cores.

    None where the system does not say.
    """

    others: float | None = None

    def __enter__(self) -> Watch:
        if STAT.exists():
            self._begun = _ticks(), _own()
        return self

    def __exit__(self, *error: Any) -> None:
        if not STAT.exists():
            return
        ticks, own = self._begun
        # Without guests' time, which user's holds already.
        spent = [b - a for a, b in zip(ticks, _ticks(), strict=True)][:8]
        busy = (sum(spent) - spent[3] - spent[4]) / os.sysconf("SC_CLK_TCK")
        all_cores = sum(spent) / os.sysconf("SC_CLK_TCK")
        self.others = max(0.0, busy - (_own() - own)) / max(all_cores, 1e-9)


def unstable(seconds: Seconds, watch: Watch) -> str | None:
    """Why the figure should not be trusted to the last digits, or None."""
    if watch.others is not None and watch.others > MOST_OTHERS:
        return f"the machine was busy: others used {watch.others:.0%} of its cores meanwhile"
    if seconds.rounds < LEAST_ROUNDS:
        return f"it was timed {seconds.rounds}x, too few to tell"
    if seconds.spread > MOST_SPREAD:
        return f"the middle half of the rounds spreads over {seconds.spread:.0%} of the median"
    return None
