"""The steps of `make gpu-check`: what each runs, for how long, and how its outcome is read."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import gpu_environment, gpu_reading, record_file
from .gpu_record import load
from .record import OURS


@dataclass(frozen=True)
class Context:
    """What a step may build on: the record so far, a folder for scratch, its own seconds."""

    record: Path
    scratch: Path
    seconds: float
    commit: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a step's process ended; `status` is None for one that ran over its budget."""

    status: int | None
    output: str


Reading = tuple[dict[str, Any], list[str]]  # figures and failures, a sentence each
Command = list[str]


def by_status(name: str) -> Callable[[Context, Outcome], Reading]:
    """For steps that write their own part of the record, under `name`, with its "failures"."""

    def read(context: Context, outcome: Outcome) -> Reading:
        part = load(context.record).get(name, {})
        cases = part.get("cases", {})
        failures = [*part.get("failures", []), *(f for c in cases.values() for f in c["failures"])]
        if outcome.status and not failures:
            failures = [f"{name}: ended with status {outcome.status}"]
        figures = {"left_out": len(part["left_out"])} if part.get("left_out") else {}
        return figures, failures

    return read


@dataclass(frozen=True)
class Step:
    """`command` may give a sentence instead: why the step cannot be taken here.

    A step is given what is left of the time less what later ones need at least, and never more
    than `most` seconds. One that is `extra` may be cut short or left out without fault.
    """

    name: str
    command: Callable[[Context], Command | str]
    read: Callable[[Context, Outcome], Reading]
    most: float
    least: float
    variables: Mapping[str, str] | Callable[[Context], Mapping[str, str]] = field(
        default_factory=dict
    )
    extra: bool = False


def module(name: str, *arguments: str) -> Callable[[Context], Command]:
    """A module of ours that writes into the record."""

    def command(context: Context) -> Command:
        return [sys.executable, "-m", f"benchmarks.{name}", "--record", str(context.record),
                *arguments]  # fmt: skip

    return command


def environment(context: Context) -> Command:
    given = ["--commit", context.commit] if context.commit else []
    return [*module("gpu_environment")(context), *given]


def build(context: Context) -> Command | str:
    if "environment" not in load(context.record):
        return "the environment step did not name the device's architecture"
    return [sys.executable, "setup.py", "build_ext", "--inplace"]


def build_variables(context: Context) -> Mapping[str, str]:
    gpu = load(context.record).get("environment", {}).get("gpu", {})
    return {"FASTARD_CUDA": "on", "FASTARD_CUDA_ARCH": gpu.get("arch", "")}


def pytest(marks: str, *where: str) -> Callable[[Context], Command | str]:
    """The suite, or its part; the project's own options would need plugins that may be absent."""

    def command(context: Context) -> Command | str:
        if importlib.util.find_spec("pytest") is None:
            return "pytest is not installed"
        return [
            sys.executable, "-m", "pytest", "-q", "-m", marks, "-p", "no:cacheprovider",
            "-o", "addopts=", "--continue-on-collection-errors",
            f"--junitxml={context.scratch / 'tests.xml'}", *where,
        ]  # fmt: skip

    return command


def read_tests(context: Context, outcome: Outcome) -> Reading:
    report = context.scratch / "tests.xml"
    try:
        found = gpu_reading.junit(report)
    except ValueError as error:
        return {}, [] if outcome.status is None else [f"tests: {error}"]
    report.unlink()
    failures = [f"test {case['name']}" for case in found["failures"]]
    if found["passed"] == 0 and outcome.status is not None:
        failures.append("tests: none passed")
    return found, failures


def sanitizer(tool: str, backends: str) -> Callable[[Context], Command | str]:
    def command(context: Context) -> Command | str:
        program = gpu_environment.find_cuda_tool("compute-sanitizer")
        if program is None:
            return "compute-sanitizer is not on PATH, in CUDA_HOME or beside nvcc"
        # It has to patch every kernel first, which the smoke's own clock does not see.
        seconds = f"{0.6 * context.seconds:.0f}"
        # Our own kernels: the libraries' would take the time, and their faults are not ours.
        # Triton's bear no common name.
        ours = ["--kernel-name", "kns=fastard"] if backends == "native" else []
        return [program, "--tool", tool, "--target-processes", "application-only",
                "--report-api-errors", "no", *ours, sys.executable, "-m", "benchmarks.gpu_smoke",
                "--backends", backends, "--seconds", seconds]  # fmt: skip

    return command


def read_sanitizer(context: Context, outcome: Outcome) -> Reading:
    found = gpu_reading.sanitizer(outcome.output)
    failures = [f"smoke: {case}" for case in found["wrong"]]
    if outcome.status is None:
        return found, failures
    if found["errors"] is None:
        failures.append("compute-sanitizer counted nothing: it could not watch the program")
    elif found["errors"]:
        failures.append(f"compute-sanitizer counts {found['errors']} errors")
    if outcome.status and not failures:
        failures.append(f"the smoke under compute-sanitizer ended with status {outcome.status}")
    return found, failures


def kernels(context: Context) -> Command:
    return [*module("gpu_kernels")(context), "--seconds", f"{context.seconds - 40:.0f}"]


def rivals(context: Context) -> Command:
    # One may be compiling when the time is up; what came before it is in the record.
    return [*module("gpu_attack_rivals")(context), "--seconds", f"{0.6 * context.seconds:.0f}"]


def suite(context: Context) -> Command:
    """The bench command's own lines and report, beside the record."""
    out = context.record.parent / "bench"
    given = ["--commit", context.commit] if context.commit else []
    # Not by `fastard`: its command line needs a package that may be absent.
    return [sys.executable, "-m", "benchmarks.bench", "--suite", "gpu", "--out", str(out),
            "--minutes", f"{max(0.1, 0.7 * context.seconds / 60):.2f}", *given]  # fmt: skip


def read_suite(context: Context, outcome: Outcome) -> Reading:
    """How many lines of which status there are; a rival that failed is told in its own line."""
    path = context.record.parent / "bench" / "bench.jsonl"
    if not path.exists():
        return {}, ["bench: it wrote nothing"]
    run = record_file.read(path)
    counts = Counter(line.status for line in run.results)
    wrong = [f"bench: {r.case}: {r.reason}" for r in run.results
             if r.who == OURS and r.status in ("failed", "disagrees")]  # fmt: skip
    return {"lines": dict(counts)}, wrong


# Every tensor an allocation of its own: torch's caching would hide what runs over its end.
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

WITHOUT_TRITON = ("--ignore=tests/ops/test_triton.py",)
ONLY_TRITON = ("--ignore-glob=tests/ops/test_[!t]*",)

STEPS = (
    Step("environment", environment, by_status("environment"), most=60, least=15),
    Step("build", build, by_status("build"), 200, 60, variables=build_variables),
    Step("binary", module("gpu_environment", "--binary"), by_status("binary"), 30, 10),
    Step("op tests", pytest("gpu", "tests/ops", *WITHOUT_TRITON), read_tests, 120, 60),
    Step("memcheck", sanitizer("memcheck", "native"), read_sanitizer, 70, 40, UNCACHED),
    Step("racecheck", sanitizer("racecheck", "native"), read_sanitizer, 60, 30),
    Step("kernels", kernels, by_status("kernels"), 240, 150),
    Step("attack", module("gpu_attack"), by_status("attack"), 90, 30),
    Step("engine tests", pytest("gpu", "tests/engine"), read_tests, 100, 0, extra=True),
    Step("attack rivals", rivals, by_status("attack rivals"), 150, 0, extra=True),
    Step("training step", module("gpu_step"), by_status("training step"), 60, 0, extra=True),
    Step("autoattack", module("gpu_autoattack"), by_status("autoattack"), 90, 0, extra=True),
    Step("other GPU tests", pytest("gpu", "tests", "--ignore=tests/engine", *ONLY_TRITON),
         read_tests, 120, 0, extra=True),
    Step("bench", suite, read_suite, 240, 0, extra=True),
    Step("Triton memcheck", sanitizer("memcheck", "triton"), read_sanitizer, 60, 0, UNCACHED,
         extra=True),
    Step("other tests", pytest("not gpu and not build"), read_tests, 600, 0, extra=True),
)  # fmt: skip
