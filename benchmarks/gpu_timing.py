"""Timing on a GPU: CUDA graphs of many calls over rotated tensors, replayed in turn.

A graph leaves no gaps between launches, tensors several times the L2 cache leave nothing cached,
and turns of all rivals meet the same clocks and the same neighbours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import timing

REPLAYS = 25
LEAST_SECONDS = 3e-3  # of one replay, against the clock's half microsecond
MOST_SETS, MOST_CALLS = 256, 2048
# To guess how often to repeat, not to report: bytes a second, seconds a launch.
BANDWIDTH, LAUNCH, SLOW = 3e12, 2e-6, 1e-3


def sets_for(size: int, l2: int, resident: bool) -> int:
    """How many sets of `size` bytes make four times the L2 cache; 1 where all is to stay in it."""
    return 1 if resident else max(2, min(MOST_SETS, -(-4 * l2 // size) + 1))


def rounds_for(size: int, sets: int, call: float = 0.0) -> int:
    """How often a graph goes through all sets; `call` is what one was seen to take, if long."""
    once = sets * max(size / BANDWIDTH + LAUNCH, call)
    return max(1, min(round(LEAST_SECONDS / once), MOST_CALLS // sets))


@dataclass
class Graph:
    """A captured graph of `calls` calls; `kept` are the last results of each set."""

    graph: torch.cuda.CUDAGraph
    calls: int
    kept: list[Any]


def captured(call: Callable[[int], Any], size: int, sets: int) -> Graph:
    """`call(k)`, which moves `size` bytes, for every set k and over again, warmed up and captured.

    Results stay alive until the same set comes again: freed at once, they would all lie in one
    place, which the cache holds.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for turn in range(3):  # the first compiles, the last is timed
            side.synchronize()
            begun = time.perf_counter()
            call(turn % sets)
            side.synchronize()
            seen = time.perf_counter() - begun
    torch.cuda.current_stream().wait_stream(side)
    # A short call's time is the host's.
    rounds = rounds_for(size, sets, seen if seen > SLOW else 0.0)
    graph = torch.cuda.CUDAGraph()
    kept: list[Any] = [None] * sets
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(rounds):
            for k in range(sets):
                kept[k] = call(k)
    return Graph(graph, rounds * sets, kept)


def by_replay(graph: Graph) -> tuple[float, None]:
    """Seconds a call of one replay."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # Keeps the device busy while the host submits the graph.
    torch.cuda._sleep(1_000_000)
    begin.record()
    graph.graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / graph.calls, None


def replayed(
    graphs: dict[str, Graph], prepare: Callable[[], None], replays: int = REPLAYS
) -> dict[str, dict[str, float]]:
    """Seconds a call of each graph, one replay of each in turn."""
    seconds, _ = timing.turns(graphs, by_replay, rounds=replays, warm_up=2, before=prepare)
    return {name: summary(values) for name, values in seconds.items()}


def summary(values: list[float]) -> dict[str, float]:
    """Median, extremes and the spread between the tenths."""
    tenths = statistics.quantiles(values, n=10)
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "p10": tenths[0],
        "p90": tenths[-1],
        "spread": timing.summary(values).spread,
        "replays": len(values),
    }


def copies(size: int, sets: int, device: str) -> Callable[[int], None]:
    """Device-to-device copies that move `size` bytes, half of them read."""
    pairs = [
        (torch.empty(size // 2, dtype=torch.uint8, device=device),
         torch.randint(256, (size // 2,), dtype=torch.uint8, device=device))
        for _ in range(sets)
    ]  # fmt: skip

    def call(k: int) -> None:
        pairs[k][0].copy_(pairs[k][1])

    return call


def smallest_kernels(device: str) -> Callable[[int], None]:
    """`fill_` of one element: what a graph node costs that does nothing."""
    one = torch.zeros(1, device=device)

    def call(_: int) -> None:
        one.fill_(1.0)

    return call
