"""What was measured, on what, how, and against which targets."""

from __future__ import annotations

import re
from typing import Any

from ..record import OURS, Target
from ..record_file import Run
from .cases import STATES, cases, shaky
from .document import Cell, Number, Section, Table, Verdict, number, without_empty_columns

# What fastard itself stands on; the other versions are its rivals'.
OWN_VERSIONS = ("torch", "torch_cuda", "cudnn", "triton", "python", "nvcc")


def lead(run: Run) -> list[str]:
    machine = run.environment.machine
    device = machine.get("gpu") or machine.get("cpu") or "an unnamed processor"
    device = device.get("name") if isinstance(device, dict) else device
    told = [f"Suite {run.environment.suite} of fastard {run.environment.fastard} on {device}."]
    if not run.complete:
        told.append("The run was cut short: this is what it had measured until then.")
    if run.environment.commit.get("dirty"):
        told.append("Files differed from the commit.")
    return told


def environment(run: Run) -> Section:
    about = run.environment
    rows: list[list[Cell]] = [["suite", about.suite], ["begun", about.begun],
                              ["fastard", about.fastard]]  # fmt: skip
    if run.end:
        rows.append(["took", Number(run.end.seconds, "seconds")])
    rows += [["commit", _words(about.commit.get("id"))],
             ["differs from the commit", _words(about.commit.get("dirty"))]]  # fmt: skip
    rows += [[_name(name), _words(about.versions.get(name))] for name in OWN_VERSIONS]
    rows += _flat("", about.machine)
    table = Table("environment", "What every figure depends on", ["what", "is"],
                  [row for row in rows if row[1] is not None])  # fmt: skip
    return Section("environment", "Environment", [], [table])


def _flat(prefix: str, found: dict[str, Any]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for name, value in found.items():
        words = _name(f"{prefix}{name}")
        if isinstance(value, dict):
            rows += _flat(f"{words} ", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            kind = next((k for k in ("bytes", "share", "seconds") if name.endswith(k)), "plain")
            rows.append([words.removesuffix(" bytes"), Number(value, kind)])
        elif value is not None:
            rows.append([words, _words(value)])
    return rows


def _name(words: str) -> str:
    return re.sub("[_.]", " ", words)


def _words(value: Any) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return None if value is None else str(value)


def targets(run: Run) -> Section:
    """The run's own targets, then, folded, those of cases that it did not hold."""
    held = {result.case for result in run.results}
    columns = ["target", "verdict", "measured", "must be at", "bound", "figure", "remark", "case"]
    tables = [
        without_empty_columns(Table(name, title, columns, [
            _target(target) for target in run.targets
            if (target.value is None and target.case not in held) == folded
        ], folded))
        for name, title, folded in (
            ("targets", "Targets and what was measured", False),
            ("targets-elsewhere", "Targets not measured here", True),
        )
    ]  # fmt: skip
    return Section("targets", "Targets", [], tables, missing="The record names no target.")


def _target(target: Target) -> list[Cell]:
    case = None if target.case and target.case in target.name else target.case
    return [
        target.name, Verdict(target.reached), number(target.value, "figure"), target.at,
        Number(target.bound, "size"), target.figure, target.reason, case,
    ]  # fmt: skip


def rivals(run: Run) -> Section:
    """Every rival's version, and what kept any from being measured."""
    versions: list[list[Cell]] = [
        [name, version or "not installed"]
        for name, version in run.environment.versions.items()
        if name not in (*OWN_VERSIONS, OURS)
    ]  # fmt: skip
    out: list[list[Cell]] = [
        [result.who, result.case, STATES[result.status], result.reason]
        for result in run.results if result.status in STATES
    ]  # fmt: skip
    text = ["A contestant is timed only where it agrees: what disagreed, failed or could not be "
            "installed has a line here and no time anywhere."]  # fmt: skip
    tables = [
        Table("versions", "Versions", ["package", "version"], versions),
        Table("not-measured", "What was not measured", ["who", "case", "state", "reason"], out),
    ]
    return Section("rivals", "Rivals", text, tables)


def method(run: Run) -> Section:
    """How figures were taken, with all that was asserted before."""
    asserted: dict[tuple[str, float], float] = {}
    for agreed in (result.agreement for result in run.results if result.agreement):
        key = (agreed.what, agreed.allowed)
        if agreed.value is not None:
            asserted[key] = max(agreed.value, asserted.get(key, agreed.value))
    agreements: list[list[Cell]] = [
        [what.rstrip(","), Number(allowed, "error"), Number(worst, "error")]
        for (what, allowed), worst in asserted.items()
    ]
    unstable: list[list[Cell]] = [
        [case, who, why]
        for (case, _, _), found in cases(run.results).items()
        for why, who in shaky(found).items()
    ]
    text = [
        "Contestants of a case take turns, round by round, so that a slow moment hits all alike; "
        "each is warmed up first. The fastest round counts, ratios are between fastest rounds, "
        "and the spread is the range between the quarters as a share of the median.",
        "Before the clock runs, each contestant's result is compared; what disagrees is not timed. "
        "Every attack follows a change of the weights, so that their renewal is part of it.",
        "A figure taken while the machine was busy, or whose rounds lie far apart, is marked as "
        "not stable.",
    ]
    tables = [
        Table("agreement", "What was asserted before timing",
              ["what", "allowed", "worst found"], agreements),
        Table("unstable", "Figures that are not stable", ["case", "who", "why"], unstable, True),
    ]  # fmt: skip
    return Section("method", "How it was measured", text, tables, missing="Nothing was timed.")
