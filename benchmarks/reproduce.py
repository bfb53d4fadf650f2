"""The methods side by side: python -m benchmarks.reproduce --data-root DIR --teacher NAME=FILE.

Trains every row of `reproduce_protocol` under one budget and one protocol, seed after seed, and
writes what each student withstood. The budget ends the starting of runs, not their length: only
seeds whose every row has finished enter the table. What was finished is kept and not run again;
what was finished under another protocol is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fastard.files import require_writable_dir, write_json

from . import environment, reproduce_table
from .reproduce_protocol import OWN_TEACHER, PROTOCOLS, ROWS, Protocol
from .reproduce_run import recorded

LABELS = tuple(row.label for row in ROWS)


def specifications(
    protocol: Protocol,
    device: str,
    root: str,
    teachers: Sequence[tuple[str, str]],
    seeds: int,
    labels: Sequence[str] = LABELS,
) -> list[dict[str, Any]]:
    """Every run, seed by seed, so that whole seeds are finished first."""
    shared = {
        key: getattr(protocol, key)
        for key in ("eps", "train_n", "epochs", "test_n", "batch_size", "lr", "weight_decay")
    } | {"steps": protocol.steps, "precision": protocol.precision}
    made = []
    for seed in range(seeds):
        for student in protocol.student:
            for row in ROWS:
                if row.label not in labels:
                    continue
                if row.teachers > len(teachers):
                    raise SystemExit(
                        f"--teacher must be given {row.teachers} times for {row.label}, but was "
                        f"given {len(teachers)} times."
                    )
                made.append(
                    {
                        **shared,
                        "label": row.label,
                        "method": row.method,
                        "options": dict(row.options),
                        "student": student,
                        "seed": seed,
                        "device": device,
                        "data_root": root,
                        "teachers": list(teachers[: row.teachers]),
                    }
                )
    return made


def file_name(spec: dict[str, Any]) -> str:
    return f"{spec['student']}-{spec['label']}-{spec['seed']}.json"


def require_same(spec: dict[str, Any], file: Path) -> None:
    """Exits with a sentence where a finished run was made under another specification."""
    wanted, found = recorded(spec), json.loads(file.read_text()).get("spec")
    if found == wanted:
        return
    told = "does not say how it was made"
    if found is not None:
        names = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        told = "was made with " + ", ".join(f"{k} {found.get(k)!r}" for k in names)
        told += ", not " + ", ".join(f"{k} {wanted.get(k)!r}" for k in names)
    raise SystemExit(
        f"--runs must hold runs of this protocol alone, but {file} {told}: name another folder."
    )


def errors_of(spec: dict[str, Any], folder: Path) -> Path:
    """Where a run's stderr goes; it stays only where the run failed."""
    return folder / f"{file_name(spec)}.log"


def run_all(
    specs: Sequence[dict[str, Any]], folder: Path, processes: int, deadline: float, console: Console
) -> None:
    """Runs what has no file yet, `processes` at a time, starting none after the deadline."""
    for spec in specs:
        if (folder / file_name(spec)).exists():
            require_same(spec, folder / file_name(spec))
    waiting = [spec for spec in specs if not (folder / file_name(spec)).exists()]
    running: dict[subprocess.Popen[bytes], dict[str, Any]] = {}
    while waiting or running:
        while waiting and len(running) < processes and time.monotonic() < deadline:
            spec = waiting.pop(0)
            given = folder / f".{file_name(spec)}.spec"
            given.write_text(json.dumps(spec))
            threads = {"OMP_NUM_THREADS": "1"} if spec["device"] == "cpu" else {}
            command = [sys.executable, "-m", "benchmarks.reproduce_run"]
            with errors_of(spec, folder).open("w") as errors:
                process = subprocess.Popen(
                    [*command, str(given), str(folder / file_name(spec))],
                    env=os.environ | threads,
                    stderr=errors,
                )
            running[process] = spec
        if not running:
            console.print(f"the budget is spent: {len(waiting)} runs were not started")
            return
        time.sleep(0.2)
        for process in [p for p in running if p.poll() is not None]:
            spec = running.pop(process)
            (folder / f".{file_name(spec)}.spec").unlink()
            if process.returncode:
                for other in running:
                    other.terminate()
                log = errors_of(spec, folder)
                last = log.read_text(errors="replace").strip().splitlines() or ["it says nothing"]
                raise SystemExit(f"the run {file_name(spec)} failed, see {log}: {last[-1]}")
            errors_of(spec, folder).unlink()
            result = json.loads((folder / file_name(spec)).read_text())
            accuracies = "  ".join(
                f"{key} {100 * reproduce_table.verdicts(result, key).mean():.1f}"
                for key in reproduce_table.COLUMNS
            )
            console.print(
                f"{spec['student']} {spec['label']} seed {spec['seed']}: {accuracies}  "
                f"({result['train_seconds']:.0f} s + {result['evaluation_seconds']:.0f} s)"
            )


def record(
    specs: Sequence[dict[str, Any]], folder: Path, protocol: Protocol, minutes: float
) -> dict[str, Any]:
    """The finished seeds' table, differences and verdicts."""
    found, complete = [], []
    for seed in sorted({spec["seed"] for spec in specs}):
        files = [folder / file_name(spec) for spec in specs if spec["seed"] == seed]
        if all(file.exists() for file in files):
            complete.append(seed)
            found += [json.loads(file.read_text()) for file in files]
    return {
        "environment": environment.of_cpu(),
        "protocol": asdict(protocol),
        "budget_minutes": minutes,
        "run_minutes": round(
            sum(run["train_seconds"] + run["evaluation_seconds"] for run in found) / 60, 1
        ),
        "seeds": complete,
        "claim": reproduce_table.CLAIM,
        "notes": {row.label: row.note for row in ROWS if row.note},
        "rows": reproduce_table.rows(found),
        "pairs": reproduce_table.pairs(found),
        "runs": found,
    }


def spent(folder: Path, seconds: float) -> float:
    """Wall minutes of all calls that filled the folder, this one's seconds with them."""
    path = folder / "minutes.json"
    before = json.loads(path.read_text())["minutes"] if path.exists() else 0.0
    write_json(path, {"minutes": before + seconds / 60})
    return round(before + seconds / 60, 1)


def own_teacher(protocol: Protocol, root: str, folder: Path, console: Console) -> tuple[str, str]:
    """The robust teacher that a protocol without a public one trains first."""
    name, weights = OWN_TEACHER["student"], folder / "teacher.safetensors"
    epochs = min(OWN_TEACHER["epochs"], protocol.epochs)
    own = replace(protocol, student=(name,), epochs=epochs)
    (chosen,) = specifications(own, "cuda", root, [], 1, [OWN_TEACHER["method"]])
    chosen |= {"label": "teacher", "save": str(weights)}
    run_all([chosen], folder, 1, time.monotonic() + 1, console)
    return name, str(weights)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=sorted(PROTOCOLS), default="cpu")
    parser.add_argument("--data-root", required=True, help="holds cifar-10-batches-py")
    parser.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="architecture and checkpoint, the first for every method of one teacher; on cuda, "
        "where none is given, a WRN-34-10 is trained with TRADES first",
    )
    parser.add_argument("--budget-minutes", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=LABELS, default=LABELS)
    parser.add_argument("--epochs", type=int, help="shortens the protocol, to try it out")
    parser.add_argument("--train-n", type=int, help="as --epochs")
    parser.add_argument("--test-n", type=int, help="as --epochs")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--out", type=Path, help="runs/reproduce/reproduce.json when left out")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments().parse_args(argv)
    started, console = time.monotonic(), Console(soft_wrap=True, highlight=False)
    shorter = {
        name: getattr(given, name)
        for name in ("epochs", "train_n", "test_n")
        if getattr(given, name) is not None
    }
    protocol = replace(PROTOCOLS[given.device], **shorter)
    if given.seeds < 1:
        raise SystemExit(f"--seeds must be at least 1, but is {given.seeds}.")
    if not Path(given.data_root, "cifar-10-batches-py").is_dir():
        raise SystemExit(
            f"--data-root must hold cifar-10-batches-py, but {given.data_root!r} does not."
        )
    folder = require_writable_dir(given.runs)
    teachers = []
    for text in given.teacher:
        name, _, path = text.partition("=")
        if not Path(path).is_file():
            raise SystemExit(f"--teacher must be NAME=FILE of a checkpoint, but is {text!r}.")
        teachers.append((name, str(Path(path).resolve())))
    if not teachers and given.device != "cuda":
        raise SystemExit("--teacher must be given on the CPU: no teacher is trained there.")
    try:
        if not teachers:
            teachers = [own_teacher(protocol, given.data_root, folder, console)]
        specs = specifications(
            protocol, given.device, given.data_root, teachers, given.seeds, given.methods
        )
        run_all(specs, folder, protocol.processes, started + 60 * given.budget_minutes, console)
    finally:
        minutes = spent(folder, time.monotonic() - started)
    made = record(specs, folder, protocol, given.budget_minutes) | {"minutes": minutes}
    write_json(given.out or folder / "reproduce.json", made)
    console.print(reproduce_table.markdown(made), markup=False)


if __name__ == "__main__":
    main()
