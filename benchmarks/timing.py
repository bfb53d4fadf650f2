"""Timing on machines that others use too: interleaved rounds, minimum and median, an idle check."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastard
from fastard import native


def _batch_size(run: Callable[[], Any], least: float = 2e-4) -> int:
    """How many calls make one sample long enough for the clock."""
    run()
    begun = time.perf_counter()
    run()
    once = max(time.perf_counter() - begun, 1e-7)
    return max(1, int(least / once))


def interleaved(
    candidates: dict[str, Callable[[], Any]], *, seconds: float = 4.0, least_rounds: int = 20
) -> dict[str, dict[str, float]]:
    """Seconds per call of each candidate, measured in turn so that noise hits all alike."""
    calls = {name: _batch_size(run) for name, run in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    collecting = gc.isenabled()
    gc.disable()
    try:
        end, rounds = time.perf_counter() + seconds, 0
        while rounds < least_rounds or time.perf_counter() < end:
            for name, run in candidates.items():
                begun = time.perf_counter()
                for _ in range(calls[name]):
                    run()
                samples[name].append((time.perf_counter() - begun) / calls[name])
            rounds += 1
    finally:
        if collecting:
            gc.enable()
    return {
        name: {"min": min(s), "median": statistics.median(s), "rounds": len(s)}
        for name, s in samples.items()
    }


def idle_share(seconds: float = 0.3) -> float | None:
    """The share of all cores that was idle for a moment; None where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None

    def ticks() -> list[int]:
        return [int(v) for v in stat.read_text().splitlines()[0].split()[1:]]

    before = ticks()
    time.sleep(seconds)
    spent = [b - a for a, b in zip(before, ticks(), strict=True)]
    return round((spent[3] + spent[4]) / max(sum(spent), 1), 3)


def cpu_name() -> str:
    """The processor as /proc/cpuinfo or the platform module names it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """What a figure depends on, without naming the machine."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": native.module.cpu_isa() if native.module else None,
        "compiler": native.module.compiler if native.module else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastard": fastard.__version__,
    }
