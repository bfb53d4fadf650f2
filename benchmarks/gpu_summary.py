"""A GPU check's record as text: python -m benchmarks.gpu_summary FILE.json"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import gpu_attack_summary
from .gpu_record import load


def of_step(step: dict[str, Any]) -> str:
    """One step's outcome in a line."""
    parts = [step["outcome"]]
    if "reason" in step:
        parts.append(step["reason"])
    if "seconds" in step:
        parts.append(f"{step['seconds']:.0f} s")
    for key in ("passed", "failed", "skipped", "errors", "warnings", "left_out"):
        if step.get(key) is not None:
            parts.append(f"{step[key]} {key.replace('_', ' ')}")
    if step.get("missing"):
        parts.append(f"not installed: {', '.join(step['missing'])}")
    return ", ".join(parts)


def of_target(row: dict[str, Any]) -> str:
    """One target, reached or not."""
    verdict = "reached" if row["reached"] else "NOT reached"
    if row["target"] == "launch":
        told = [f"{1e6 * v:.2f} us" if v is not None else "not measured"
                for v in (row["value"], row["at_most"])]  # fmt: skip
        return f"{row['case']}: {told[0]}, target at most {told[1]}: {verdict}"
    value = "not measured" if row["value"] is None else f"{row['value']:.3g}"
    if "at_most" in row:
        return (
            f"{row['case']}: {value} {row['figure']}, target at most {row['at_most']:g}: {verdict}"
        )
    return f"{row['case']}: {value} {row['figure']}, target {row['at_least']:g}: {verdict}"


def targets(record: dict[str, Any]) -> list[dict[str, Any]]:
    cases = [
        case for part in ("kernels", "autoattack")
        for case in record.get(part, {}).get("cases", {}).values()
    ]  # fmt: skip
    rows = [row for case in cases for row in case.get("targets", ())]
    return [*rows, *gpu_attack_summary.targets(record)]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def kernel_rows(record: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    yield "kernel", "us", "GB/s", "of copy", "Triton of copy", "x compile", "x eager"
    for name, case in record.get("kernels", {}).get("cases", {}).items():
        if "seconds" not in case:
            continue
        own = case["seconds"].get("native", {}).get("median")
        yield (
            name,
            _number(None if own is None else 1e6 * own, ".2f"),
            _number(case["gigabytes_per_second"].get("native"), ".0f"),
            *(_number(case["share_of_copy"].get(k), ".2f") for k in ("native", "triton")),
            *(_number(case["times_faster_than"].get(k), ".2f") for k in ("compile", "eager")),
        )


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns of equal width, the first to the left."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(w) if k else cell.ljust(w)
            for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def lines(record: dict[str, Any]) -> list[str]:
    """Machine, kernels, targets, steps and failures."""
    environment = record.get("environment", {})
    gpu, versions = environment.get("gpu", {}), environment.get("versions", {})
    found = [
        f"{gpu.get('name')}, torch {versions.get('torch')}, triton {versions.get('triton')}",
        "",
    ]
    found += table(kernel_rows(record))
    found += ["", *gpu_attack_summary.lines(record)]
    found += ["", *map(of_target, targets(record)), ""]
    found += [f"{name}: {of_step(step)}" for name, step in record.get("steps", {}).items()]
    failed = [s for step in record.get("steps", {}).values() for s in step["failures"]]
    found += ["", f"Failures: {len(failed)}", *failed]
    return found


if __name__ == "__main__":
    print("\n".join(lines(load(Path(sys.argv[1])))))
