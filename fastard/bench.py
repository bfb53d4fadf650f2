"""``fastard bench``: the benchmarks, from the checkout or as the wheel carries them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated

import tyro
from rich.console import Console

INSTALLED, CHECKOUT = "fastard._benchmarks", "benchmarks"


@dataclass
class BenchConfig:
    """Time fastard beside its rivals on this machine, and write a report.

    Lines are written to OUT/bench.jsonl as they come: a run that is killed keeps what it has.
    """

    suite: str = "quick"
    """quick (three minutes on two cores), cpu (about twenty), gpu, or full (hours)."""
    out: Path = Path("runs/bench")
    """The folder for bench.jsonl and the report."""
    baseline: str | None = None
    """A bench.jsonl, or a commit that holds this suite's recorded run: what is slower than there
    beyond the noise, or fails where that has a time, is named and makes the exit status 1."""
    case: Annotated[str | None, tyro.conf.arg(metavar="REGEX")] = None
    """Only cases whose names hold this regular expression."""
    minutes: float | None = None
    """Begin no case after so many minutes (default: the suite's own)."""
    commit: str | None = None
    """The commit to record, where git does not say."""


def bench(config: BenchConfig, console: Console) -> int:
    """Runs a suite and returns the exit status: 1 where something has become slower or
    has no time any more, 130 when interrupted.

    Raises:
        ValueError: an unknown suite, no case of that name, a baseline that is none or shares no
            case, an installation without the benchmarks.
        OSError: the folder cannot be written.
    """
    made = benchmarks("bench")
    asked = made.Asked(config.suite, config.out, config.baseline, config.case, config.minutes,
                       config.commit)  # fmt: skip
    try:
        return made.run(asked, console)
    except KeyboardInterrupt:
        kept = config.out / made.NAME
        console.print(f"interrupted; {kept} holds what was measured", soft_wrap=True)
        return 130


def benchmarks(module: str) -> ModuleType:
    """A module of the benchmarks: the wheel's, or the folder's beside this package."""
    if importlib.util.find_spec(INSTALLED) is not None:
        return importlib.import_module(f"{INSTALLED}.{module}")
    root = Path(__file__).resolve().parents[1]
    if not (root / CHECKOUT / "bench.py").is_file():
        raise ValueError(
            "bench needs the benchmarks, which this installation lacks: install fastard's wheel, "
            "or run it in a checkout."
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module(f"{CHECKOUT}.{module}")
