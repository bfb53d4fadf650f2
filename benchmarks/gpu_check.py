"""`make gpu-check`: builds, tests, sanitizes and times fastard on this machine's GPU.

Needs an existing python with torch and CUDA, nvcc, and nothing from the network. Everything lands
in one JSON file, step by step and case by case, so that whatever ends the run leaves the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastard import native
from fastard.files import require_writable_dir, write_json

from . import gpu_summary
from .gpu_record import NAME, load, put
from .gpu_steps import STEPS, Context, Outcome, Step

ROOT = Path(__file__).resolve().parent.parent
LOG = "gpu_check.log"
GRACE = 5.0  # seconds in which an interrupted step may still write what it has
SHORTEST = 5.0  # a step given less is left out
TAIL = 4000


def missing() -> str | None:
    """Why nothing can be checked here, or None."""
    if native.torch_version() < native.OLDEST_TORCH:
        oldest = ".".join(map(str, native.OLDEST_TORCH))
        return f"gpu-check needs torch {oldest} or newer, not {torch.__version__}."
    if not torch.cuda.is_available():
        return f"gpu-check needs a CUDA device, but torch {torch.__version__} sees none."
    return None


def run(steps: Sequence[Step], out: Path, seconds: float, commit: str | None = None) -> int:
    """Takes the steps in turn within `seconds`; returns 1 where one failed, else 0."""
    record, log = out / NAME, out / LOG
    begun = time.monotonic()
    write_json(record, {"check": "fastard on a GPU", "complete": False, "seconds_given": seconds})
    log.write_bytes(b"")
    needed = sum(step.least for step in steps)
    shrunk = min(1.0, 0.75 * seconds / needed) if needed else 1.0
    scratch = Path(tempfile.mkdtemp(prefix="fastard-gpu-check-"))
    try:
        for number, step in enumerate(steps):
            left = seconds - (time.monotonic() - begun)
            later = shrunk * sum(other.least for other in steps[number + 1 :])
            context = Context(record, scratch, min(step.most, left - later), commit)
            print(f"{step.name}: at most {max(context.seconds, 0):.0f} s", flush=True)
            found = take(step, context, log)
            put(record, found, "steps", step.name)
            print(f"{step.name}: {gpu_summary.of_step(found)}", flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    put(record, time.monotonic() - begun, "seconds")
    put(record, True, "complete")
    return 1 if failures(load(record)) else 0


def failures(record: dict[str, Any]) -> list[str]:
    """A sentence for whatever failed; a missed target of speed is no failure."""
    return [sentence for step in record.get("steps", {}).values() for sentence in step["failures"]]


def take(step: Step, context: Context, log: Path) -> dict[str, Any]:
    """One step: its outcome in words, figures and failures."""
    if context.seconds < SHORTEST:
        said = [] if step.extra else [f"{step.name} was left out: no time was left"]
        return {"outcome": "left out", "reason": "no time was left", "failures": said}
    command = step.command(context)
    if isinstance(command, str):
        said = [] if step.extra else [f"{step.name}: {command}"]
        return {"outcome": "unavailable", "reason": command, "failures": said}
    variables = step.variables(context) if callable(step.variables) else step.variables
    begun = time.monotonic()
    outcome = execute(command, context.seconds, log, dict(variables))
    took = time.monotonic() - begun
    figures, sentences = step.read(context, outcome)
    found: dict[str, Any] = {
        "command": shown(command, context),
        "seconds": took,
        "budget": context.seconds,
    }
    if outcome.status is None:
        found["outcome"] = "over budget"
        if not step.extra:
            sentences = [*sentences, f"{step.name} ran over its {context.seconds:.0f} s"]
    else:
        found["outcome"] = "failed" if sentences else "done"
    if sentences or outcome.status is None:
        found["output"] = outcome.output[-TAIL:]
    return {**found, **figures, "failures": sentences}


def shown(command: list[str], context: Context) -> str:
    """The command as one would type it in the project's folder."""
    text = " ".join(command)
    for place in (context.record.parent, context.scratch):
        text = text.replace(f"{place}{os.sep}", "")
    return text


def execute(command: list[str], seconds: float, log: Path, variables: dict[str, str]) -> Outcome:
    """Runs a command in a process group of its own and ends all of it when the time is up."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FASTARD_")}
    offset = log.stat().st_size
    with log.open("ab") as sink:
        sink.write(f"$ {' '.join(command)}\n".encode())
        sink.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env={**kept, "PYTHONUNBUFFERED": "1", **variables},
            stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
            preexec_fn=_apart)  # fmt: skip
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                end(process)
    with log.open("rb") as file:
        file.seek(offset)
        return Outcome(status, file.read().decode(errors="replace"))


def _apart() -> None:
    os.setpgrp()
    # A shell's background job ignores it, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(process: subprocess.Popen[bytes]) -> None:
    """Interrupts the group, as a user would, then kills what is left of it."""
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    # Whether or not the leader has gone: a child of it may still hold the device.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 where a test, a sanitizer or an agreement failed, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check")
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {NAME} and {LOG}")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all steps together")
    parser.add_argument("--commit", help="the commit, where the tree has no git")
    arguments = parser.parse_args(argv)
    sentence = missing()
    if sentence is None and not 0.1 <= arguments.minutes <= 600:
        sentence = f"--minutes must lie between 0.1 and 600, but is {arguments.minutes:g}."
    try:
        if sentence is None:
            require_writable_dir(arguments.out)
    except OSError as error:
        sentence = f"{error}."
    if sentence is not None:
        print(sentence, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = run(STEPS, arguments.out, 60 * arguments.minutes, arguments.commit)
    except KeyboardInterrupt:
        print(f"interrupted; {arguments.out / NAME} holds what was found", file=sys.stderr)
        return 130
    print("\n".join(gpu_summary.lines(load(arguments.out / NAME))))
    print(f"Written: {arguments.out / NAME}, {arguments.out / LOG}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
