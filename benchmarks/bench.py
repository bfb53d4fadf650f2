"""`fastard bench`: a suite's cases one by one, each line written before the next is measured."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from fastard.files import require_writable_dir
from fastard.progress import progress_bar

from . import baseline, declared, environment
from .case import CPU, GPU, QUICK, Case
from .contest import first_line
from .record import OURS, Comparison, End, Environment, Line, Result, Target
from .record_file import Run, Writer
from .rivals import Absent

NAME = "bench.jsonl"
# What is left of these seconds decides whether a case is begun; quick must end within 3 minutes.
SECONDS = {QUICK: 150.0, CPU: 1150.0}
SLOWER = 1


@dataclass
class Asked:
    """What a run of the benchmarks was asked for; see `fastard bench --help`."""

    suite: str
    out: Path
    baseline: str | None = None
    case: str | None = None
    minutes: float | None = None
    commit: str | None = None


def run(asked: Asked, console: Console | None = None) -> int:
    """Measures a suite; returns 1 where something is slower than in the baseline or has no time
    any more, else 0.

    Raises:
        ValueError: an unknown suite or case, a baseline that cannot be read or of which no case was
            compared, minutes below 0.1, the gpu suite without a GPU.
        OSError: the folder cannot be written.
    """
    console = console or Console()
    cases = declared.of_suite(asked.suite, asked.case)
    if asked.suite == GPU and not torch.cuda.is_available():
        raise ValueError("--suite gpu needs a CUDA device, but torch sees none.")
    if asked.minutes is not None and not asked.minutes >= 0.1:
        raise ValueError(f"--minutes must be at least 0.1, but is {asked.minutes:g}.")
    old = None if asked.baseline is None else baseline.load(asked.baseline, asked.suite)
    folder = require_writable_dir(asked.out)
    seconds = SECONDS.get(asked.suite) if asked.minutes is None else 60 * asked.minutes
    device = "cuda" if torch.cuda.is_available() and asked.suite not in (QUICK, CPU) else "cpu"
    with warnings.catch_warnings():
        # The libraries' own, which say nothing of a figure.
        warnings.simplefilter("ignore")
        found = measure(
            cases, folder / NAME, environment.record(asked.suite, device, asked.commit), seconds,
            console, old, asked.baseline or "", declared.elsewhere(cases))  # fmt: skip
    _report(folder / NAME, folder, console)
    return 0 if old is None else compared(old, found, len(cases), console)


def compared(old: Run, found: list[Line], count: int, console: Console) -> int:
    """Says what the comparison found; returns 1 where something is slower or has no time any more.

    Raises:
        ValueError: none of the `count` cases was compared.
    """

    def red(text: str) -> None:
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)

    lines = [line for line in found if isinstance(line, Comparison)]
    said(console, f"{len({line.case for line in lines})} of {count} cases compared")
    lost, slower = baseline.lost(old, found), [line for line in lines if line.slower]
    for result in lost:
        red(f"{result.status}: {result.case}, which the baseline has a time for: {result.reason}")
    for line in slower:
        there = "" if line.same_machine else ", on another machine, against the rivals there"
        red(f"slower: {line.case} takes {line.change:.2f} times what it took in {line.baseline}"
            f"{there} (noise {line.noise:.0%})")  # fmt: skip
    if not lines and not lost:
        raise ValueError(
            f"--baseline must hold a time for one of the cases measured, but {old.path} holds none "
            "that could be compared."
        )
    return SLOWER if slower or lost else 0


def measure(
    cases: Iterable[Case], path: Path, here: Environment, seconds: float | None, console: Console,
    old: Run | None = None, given: str = "", elsewhere: Iterable[Target] = (),
) -> list[Line]:  # fmt: skip
    """Every case's lines, written as they come; a case that fails has a line that says so.

    `elsewhere` are targets that this run does not measure.
    """
    cases, begun = list(cases), time.perf_counter()
    writer = Writer(path, here)
    everything: list[Line] = []

    def put(line: Line) -> None:
        writer.put(line)
        everything.append(line)

    said(console, f"{len(cases)} cases, to {path}")
    with progress_bar(console) as bar:
        task = bar.add_task("bench", total=len(cases))
        for case in cases:
            bar.update(task, description=case.name)
            late = seconds is not None and time.perf_counter() - begun > seconds
            results = _results(case, late, put, here)
            for target in case.targets(results, here.machine):
                put(target)
            if old is not None:
                for comparison in baseline.compare(old, case.name, results, here.machine, given):
                    put(comparison)
            said(console, told(case, results))
            bar.advance(task)
    for target in elsewhere:
        put(target)
    put(End(time.perf_counter() - begun))
    return everything


def _results(
    case: Case, late: bool, put: Callable[[Line], None], here: Environment
) -> list[Result]:
    """A case's results, each written at once."""
    found: list[Result] = []

    def keep(line: Line) -> None:
        put(line)
        if isinstance(line, Result):
            found.append(line)

    if late:
        keep(case.line(OURS, "skipped", reason="no time was left for it"))
    elif case.device == "cuda" and not torch.cuda.is_available():
        keep(case.line(OURS, "unavailable", reason="torch sees no CUDA device"))
    else:
        try:
            for line in case.measure(case):
                keep(line)
        except Absent as error:
            keep(case.line(OURS, "unavailable", reason=str(error)))
        except Exception as error:  # one case must not end the run; its line says what it was
            keep(case.line(OURS, "failed", reason=first_line(error)))
        if case.device == "cuda":
            torch.cuda.empty_cache()
    return found


def told(case: Case, results: list[Result]) -> str:
    """A case in a line of text."""
    parts = []
    for line in results:
        if line.seconds is None and line.peak_bytes is None:
            parts.append(f"{line.who} {line.status}: {line.reason}")
            continue
        figure = f"{line.peak_bytes or 0:,} bytes"
        if line.seconds is not None:
            figure = f"{1e3 * line.seconds.min:.4g} ms"
        ratio = line.ratio or line.memory_ratio
        parts.append(f"{line.who} {figure}" + (f" ({ratio:.2f}×)" if ratio else ""))
    shaky = next((line.unstable for line in results if line.unstable), None)
    return f"{case.name}: {'; '.join(parts)}" + (f" [not stable: {shaky}]" if shaky else "")


def said(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


def _report(path: Path, folder: Path, console: Console) -> None:
    """The report beside the result file."""
    try:
        from .report import write
    except ModuleNotFoundError as error:
        said(console, f"no report beside {path}: {error.name} is not installed")
        return
    for made in write(path, folder):
        said(console, f"written: {made}")


def main(argv: Sequence[str] | None = None) -> int:
    """`fastard bench` where the command line's packages are missing; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench")
    parser.add_argument("--suite", default=QUICK)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--baseline")
    parser.add_argument("--case")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--commit")
    given = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(Asked(**vars(given)))
    except KeyboardInterrupt:
        print(f"interrupted; {given.out / NAME} holds what was measured", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
