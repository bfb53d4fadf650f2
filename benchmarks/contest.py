"""One case measured: each contestant must agree before the clock runs, then all take turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from . import timing
from .case import Case
from .record import OURS, Agreement, Result

FLOOR, COPY = "floor", "copy_"


@dataclass
class Contestant:
    """Whoever is timed. `judged` False: nothing is asserted of it, as of a copy."""

    run: Callable[[], Any]
    version: str | None = None
    variant: str | None = None
    judged: bool = True


@dataclass
class Contest:
    """Contestants by name, those who cannot take part with the reason, and the floor's loop.

    `judge` says of a contestant's result how far it is from what it should be.
    """

    contestants: dict[str, Contestant]
    judge: Callable[[str, Any], Agreement]
    absent: dict[str, tuple[str, str]] = field(default_factory=dict)
    floor: Callable[[], Any] | None = None
    before: Callable[[], Any] | None = None
    flops: int | None = None
    bytes: int | None = None
    many: bool = False
    """Whether calls are so short that several make one sample."""


class Unjudged(Exception):
    """There is nothing to hold a result against: raised by `judge`, and the row says why."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:400].rstrip(": ")


def held(case: Case, contest: Contest) -> Iterator[Result]:
    """The lines of a contest: fastard's first, then the rivals'."""
    agreed: dict[str, Agreement | None] = {}
    peaks: dict[str, int] = {}
    lost: dict[str, Result] = {}
    for who, one in contest.contestants.items():
        common: dict[str, Any] = {"version": one.version, "variant": one.variant}
        if contest.before is not None:
            contest.before()
        try:
            result, peak = watched(one.run, case.device)
            agreed[who] = verdict = contest.judge(who, result) if one.judged else None
        except Unjudged as error:
            lost[who] = case.line(who, "skipped", reason=str(error), **common)
            continue
        except Exception as error:  # whatever a library of others raises belongs into its row
            lost[who] = case.line(who, "failed", reason=first_line(error), **common)
            continue
        if peak is not None:
            peaks[who] = peak
        if verdict is not None and not verdict.agreed:
            said = f"{verdict.what} is {verdict.value:.3g}, but may be {verdict.allowed:g} at most"
            lost[who] = case.line(
                who, "disagrees", reason=f"{said}: it was not timed", agreement=verdict, **common
            )
    running = {who: one for who, one in contest.contestants.items() if who not in lost}
    rows: list[Result] = []
    while running and not rows:
        try:
            rows = list(_timed(case, contest, running, agreed, peaks))
        except timing.Crashed as crashed:
            if crashed.who not in running:
                raise
            # Its turns are missing from the others' rounds: these are taken anew.
            one = running.pop(crashed.who)
            said = f"while it was timed, {first_line(crashed.__cause__ or crashed)}"
            lost[crashed.who] = case.line(
                crashed.who, "failed", reason=said, version=one.version, variant=one.variant
            )
    for who, (status, reason) in contest.absent.items():
        lost[who] = case.line(who, status, reason=reason)
    # fastard stands first whatever became of it.
    everyone = {row.who: row for row in rows} | lost
    if OURS in everyone:
        yield everyone.pop(OURS)
    yield from everyone.values()


def watched(run: Callable[[], Any], device: str) -> tuple[Any, int | None]:
    """A run's result and, on a GPU, the most memory that it held beyond what was held before."""
    if device != "cuda":
        return run(), None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() - before


def _timed(
    case: Case, contest: Contest, running: dict[str, Contestant],
    agreed: dict[str, Agreement | None], peaks: dict[str, int],
) -> Iterator[Result]:  # fmt: skip
    loops = {who: one.run for who, one in running.items()}
    if contest.floor is not None:
        loops[FLOOR] = contest.floor
    calls = dict.fromkeys(loops, 1)
    if contest.many:
        calls = {who: timing.calls_for(run, who) for who, run in loops.items()}
        loops = {who: timing.repeated(run, calls[who]) for who, run in loops.items()}
    with timing.Watch() as watch:
        samples, _ = timing.turns(
            loops, timing.clock_of(case.device), rounds=case.rounds, seconds=case.seconds,
            most=case.most, warm_up=case.warm_up, before=contest.before)  # fmt: skip
    taken = {
        who: timing.summary([value / calls[who] for value in values], calls[who])
        for who, values in samples.items()
    }
    yield from figures(case, contest, running, taken, agreed, peaks, watch)


def figures(
    case: Case, contest: Contest, running: dict[str, Contestant], taken: dict[str, Any],
    agreed: dict[str, Agreement | None], peaks: dict[str, int], watch: timing.Watch,
) -> Iterator[Result]:  # fmt: skip
    """A line a contestant from the seconds of all."""
    floor = taken[FLOOR].min if FLOOR in taken else None
    moved = contest.bytes if contest.bytes is not None else case.bytes
    for who, one in running.items():
        seconds = taken[who]
        why = timing.unstable(seconds, watch)
        line = case.line(
            who, version=one.version, variant=one.variant, seconds=seconds, stable=why is None,
            unstable=why, agreement=agreed[who], bytes=moved, flops=contest.flops,
            bytes_per_second=None if moved is None else moved / seconds.min,
            flops_per_second=None if contest.flops is None else contest.flops / seconds.min,
            floor_seconds=floor, over_floor=None if floor is None else seconds.min / floor,
            share_of_copy=taken[COPY].min / seconds.min if COPY in taken and who != COPY else None,
            peak_bytes=peaks.get(who))  # fmt: skip
        if who != OURS and OURS in running:
            line = dataclasses.replace(line, ratio=seconds.min / taken[OURS].min)
            if who in peaks and peaks.get(OURS):
                line = dataclasses.replace(line, memory_ratio=peaks[who] / peaks[OURS])
        yield line
