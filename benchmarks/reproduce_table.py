"""What the runs of the reproduction say: means, spreads, and which differences are resolved."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 10_000
# Distillation from a robust teacher against adversarial training without one, in points.
CLAIM = {"better": ("rslad", "ard"), "worse": ("pgd-at", "trades"), "points": 1.5}
COLUMNS = {"clean": "clean", "pgd20": "PGD-20", "cw30": "CW∞-30", "robust": "worst of both"}

Runs = Sequence[Mapping[str, Any]]


def verdicts(run: Mapping[str, Any], key: str) -> np.ndarray:
    """Which test images the student classified rightly; "robust": under both attacks and clean."""
    if key != "robust":
        packed = np.frombuffer(bytes.fromhex(run["survived"][key]), dtype=np.uint8)
        return np.unpackbits(packed)[: run["test_n"]].astype(bool)
    return np.logical_and.reduce([verdicts(run, name) for name in run["survived"]])


def rows(runs: Runs) -> list[dict[str, Any]]:
    """A line a method and student: the mean over seeds of each accuracy in %, and its std."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        found.setdefault((run["student"], run["label"]), []).append(run)
    made = []
    for (student, label), group in found.items():
        line: dict[str, Any] = {"student": student, "label": label, "seeds": len(group)}
        for key in COLUMNS:
            values = [100 * float(verdicts(run, key).mean()) for run in group]
            line[key] = round(statistics.mean(values), 2)
            line[f"{key}_std"] = round(statistics.stdev(values), 2) if len(values) > 1 else None
        made.append(line)
    return made


def difference(runs: Runs, student: str, better: str, worse: str) -> dict[str, Any] | None:
    """Robust accuracy of `better` minus `worse` in points, with its 95 % interval.

    Paired by seed and test image; the bootstrap draws seeds and images anew.
    """
    by = {
        label: {r["seed"]: r for r in runs if (r["student"], r["label"]) == (student, label)}
        for label in (better, worse)
    }
    seeds = sorted(set(by[better]) & set(by[worse]))
    if not seeds:
        return None
    gap = np.stack(
        [
            verdicts(by[better][s], "robust").astype(np.int8)
            - verdicts(by[worse][s], "robust").astype(np.int8)
            for s in seeds
        ]
    )
    draw = np.random.default_rng(0)
    count = gap.shape[1]
    means = np.empty(RESAMPLES)
    for k in range(RESAMPLES):
        weights = np.bincount(draw.integers(0, count, count), minlength=count)
        chosen = gap[draw.integers(0, len(seeds), len(seeds))]
        means[k] = (chosen @ weights).mean() / count
    low, high = 100 * np.quantile(means, (0.025, 0.975))
    return {
        "student": student,
        "better": better,
        "worse": worse,
        "points": round(100 * float(gap.mean()), 2),
        "low": round(float(low), 2),
        "high": round(float(high), 2),
        "seeds": len(seeds),
        "resolved": bool(low > 0 or high < 0),
    }


def pairs(runs: Runs) -> list[dict[str, Any]]:
    """The differences that the claim speaks of."""
    students = list(dict.fromkeys(run["student"] for run in runs))
    made = (
        difference(runs, student, better, worse)
        for student in students
        for better in CLAIM["better"]
        for worse in CLAIM["worse"]
    )
    return [pair for pair in made if pair is not None]


def markdown(record: Mapping[str, Any]) -> str:
    """The table and the verdict on the claim, of a record of `benchmarks.reproduce`."""
    head = f"| student | method | seeds | {' | '.join(COLUMNS.values())} |"
    lines = [head, "|" + "---|" * (3 + len(COLUMNS))]
    notes = record["notes"]
    for line in record["rows"]:
        cells = [
            f"{line[key]:.1f}"
            + ("" if line[f"{key}_std"] is None else f" ± {line[f'{key}_std']:.1f}")
            for key in COLUMNS
        ]
        name = line["label"] + (f" ({notes[line['label']]})" if notes.get(line["label"]) else "")
        lines.append(f"| {line['student']} | {name} | {line['seeds']} | {' | '.join(cells)} |")
    lines.append("")
    for pair in record["pairs"]:
        lines.append(f"- {sentence(pair)}")
    return "\n".join(lines) + "\n"


def sentence(pair: Mapping[str, Any]) -> str:
    """One difference in words."""
    interval = f"{pair['points']:+.1f} points [{pair['low']:+.1f}, {pair['high']:+.1f}]"
    text = f"{pair['better']} against {pair['worse']} ({pair['student']}): {interval}"
    if not pair["resolved"]:
        return f"{text}: unresolved, the interval holds 0."
    reached = pair["points"] >= CLAIM["points"]
    return f"{text}: the claim of {CLAIM['points']} points is {'reached' if reached else 'missed'}."
