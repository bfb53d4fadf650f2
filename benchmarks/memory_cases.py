"""Peak memory of an attack: on the CPU of a process of its own, beside eager autograd's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

import fastard

from . import attack_contests, attack_process
from .attack_contests import PUBLISHED
from .case import Case
from .contest import watched
from .record import OURS, Line


def measure(case: Case) -> Iterator[Line]:
    """fastard's line and the published loop's, each with its peak."""
    peaks = on_gpu(case) if case.device == "cuda" else on_cpu(case)
    for who, peak in peaks.items():
        version = fastard.__version__ if who == OURS else None
        if peak is None:
            yield case.line(who, "unavailable", reason="the system does not say", version=version)
            continue
        line = case.line(who, version=version, peak_bytes=peak)
        if who != OURS and peaks[OURS]:
            line = dataclasses.replace(line, memory_ratio=peak / peaks[OURS])  # type: ignore[operator]
        yield line


def on_cpu(case: Case) -> dict[str, int | None]:
    assert case.model is not None and case.batch is not None
    return {
        who: attack_process.alone(case.model, how, batch=case.batch, calls=calls, held=True,
                                  precision=case.precision or "fp32")["peak_bytes"]
        for who, how, calls in ((OURS, "fastard", 2), (PUBLISHED, "eager", 1))
    }  # fmt: skip


def on_gpu(case: Case) -> dict[str, int | None]:
    """The allocator's peak over two attacks, the weights and images not counted."""
    f = attack_contests.prepared(case)
    found: dict[str, int | None] = {}
    for who, run in zip((PUBLISHED, OURS), reversed(attack_contests.loops(case, f)), strict=True):
        torch.cuda.empty_cache()
        found[who] = watched(lambda run=run: [run() for _ in range(3)], "cuda")[1]
    return {OURS: found[OURS], PUBLISHED: found[PUBLISHED]}
