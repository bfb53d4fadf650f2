"""A run beside an earlier one: which of fastard's times are slower beyond the noise."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from .environment import ROOT
from .record import OURS, Comparison, Line, Result
from .record_file import Run, parse, read

RECORDED = "benchmarks/results/bench_{suite}.jsonl"
# Two runs on one idle machine differ by some percent; minima differ less than rounds do.
LEAST_NOISE, MOST_NOISE, OTHER_MACHINE = 0.05, 0.5, 0.15
SAME = ("cpu", "cores", "threads", "isa")


def load(given: str, suite: str) -> Run:
    """A result file, or the one that a commit has recorded for this suite.

    Raises:
        ValueError: neither a file nor a commit that holds one, or a file that cannot be read.
    """
    path = Path(given)
    if path.is_file():
        return read(path)
    inside = RECORDED.format(suite=suite)
    command = ["git", "show", f"{given}:{inside}"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
        said = done.stderr.strip() if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if said is not None:
        raise ValueError(
            f"--baseline must be a result file or a commit that holds {inside}, but is {given!r}: "
            f"{said.splitlines()[0].rstrip('.') if said else 'git says nothing'}."
        )
    return parse(done.stdout, Path(f"{given}:{inside}"))


def same_machine(a: Run, machine: dict) -> bool:
    old = a.environment.machine
    gpus = [(m.get("gpu") or {}).get("name") for m in (old, machine)]
    return all(old.get(key) == machine.get(key) for key in SAME) and gpus[0] == gpus[1]


def compare(
    old: Run, case: str, lines: list[Result], machine: dict, given: str
) -> Iterator[Comparison]:
    """fastard's time of one case beside the earlier one's, where both were measured."""
    now = next((r for r in lines if r.who == OURS and r.seconds is not None), None)
    if now is None:
        return
    before = old.ours(case, now.precision)
    if before is None or before.seconds is None or now.seconds is None:
        return
    same = same_machine(old, machine)
    spread = max(before.seconds.spread, now.seconds.spread)
    noise = min(max(LEAST_NOISE, spread), MOST_NOISE)
    a, b = before.seconds.min, now.seconds.min
    change = b / a
    if not same:
        shares = list(_shares(old, case, lines))
        if not shares:
            return
        # Against the rivals', a faster or slower machine alike.
        change = min(shares)
        noise = max(noise, OTHER_MACHINE)
    yield Comparison(case, OURS, now.precision, a, b, change, noise, change > 1 + noise, same,
                     Path(given).name)  # fmt: skip


def lost(old: Run, lines: list[Line]) -> list[Result]:
    """fastard's lines that failed or disagree now where the earlier run has a time."""
    return [
        line for line in lines
        if isinstance(line, Result) and line.who == OURS and line.status in ("failed", "disagrees")
        and any(r.case == line.case and r.who == OURS and r.seconds for r in old.results)
    ]  # fmt: skip


def _shares(old: Run, case: str, lines: list[Result]) -> Iterator[float]:
    """fastard's share of each common rival's time, now over then."""
    then = {(r.who, r.precision): r.ratio for r in old.results if r.case == case and r.ratio}
    for line in lines:
        if line.ratio and (line.who, line.precision) in then:
            yield then[line.who, line.precision] / line.ratio
