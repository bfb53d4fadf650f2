"""An evaluation's figures: the dict that JSON holds, the table, the protocol line, Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.table import Table

from fastard.evaluation.attacks import Setting, SuiteAttack
from fastard.evaluation.suites import SUITES
from fastard.scores import weighted_robust_accuracy


def result_of(
    setting: Setting,
    suite: str,
    attacks: Sequence[SuiteAttack],
    batch_size: int,
    survived: Mapping[str, Sequence[int]],
    *,
    by: Mapping[str, Sequence[str]],
    broken: Mapping[str, Sequence[int]],
    notes: Sequence[str],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The figures of verdicts by attack, each in the samples' order."""
    n = len(survived["clean"])
    worst = [int(all(column[i] for column in survived.values())) for i in range(n)]
    verdicts = {key: list(column) for key, column in survived.items()} | {"worst": worst}
    accuracy = {key: sum(column) / n for key, column in verdicts.items()}
    first = [
        next((by[key][i] or key for key in survived if not survived[key][i]), None)
        for i in range(n)
    ]
    return {
        "suite": suite,
        "n": n,
        "eps": setting.eps,
        "norm": setting.norm,
        "precision": setting.precision,
        "seed": setting.seed,
        "batch_size": batch_size,
        "attacks": {attack.key: attack.describe() for attack in attacks},
        "accuracy": accuracy,
        "weighted_robust_accuracy": weighted_robust_accuracy(accuracy["clean"], accuracy["worst"]),
        "broken_logits": {key: sum(column) for key, column in broken.items()},
        "broken_by": first,
        "notes": list(notes),
        "seconds": dict(seconds),
        "torch": torch.__version__,
        "verdicts": verdicts,
    }


def titles(result: Mapping[str, Any]) -> dict[str, str]:
    """The title of each column of a result."""
    attacks = [attack.at(result["eps"]) for attack in SUITES[result["suite"]]]
    known = {attack.key: attack.title for attack in attacks}
    return {key: known.get(key, key) for key in result["accuracy"]}


def table(result: Mapping[str, Any]) -> Table:
    """The accuracies of a result, one column an attack."""
    shown = Table(title=f"accuracy in % on {result['data']}, {result['architecture']}")
    for title in titles(result).values():
        shown.add_column(title, justify="right")
    shown.add_row(*(f"{100 * value:.2f}" for value in result["accuracy"].values()))
    return shown


def protocol(result: Mapping[str, Any]) -> str:
    """One line that says what was measured and how."""
    line = (
        f"N={result['n']} (first in data set order), eps={result['eps']:.5g} {result['norm']}, "
        f"{result['precision']} search, fp32 verdicts; {'; '.join(result['attacks'].values())}; "
        f"checkpoint {result['checkpoint']} ({result['selection']})"
    )
    if result.get("surrogate"):
        line += f"; surrogate {result['surrogate']}"
    if result["notes"]:
        line += f"; {'; '.join(result['notes'])}"
    broken = {key: count for key, count in result["broken_logits"].items() if count}
    if broken:
        counts = ", ".join(f"{count} under {key}" for key, count in broken.items())
        line += f"; NaN or +inf logits counted as broken: {counts}"
    return line


def markdown(result: Mapping[str, Any]) -> str:
    """A row in the form of RobustBench's tables, then one with every attack."""
    name, accuracy = result["architecture"], result["accuracy"]
    robust = "aa" if "aa" in accuracy else "worst"
    told = "AutoAttack" if robust == "aa" else f"worst of the suite {result['suite']}"
    heads = ["#", "Model ID", "Paper", "Clean accuracy", "Robust accuracy", "Architecture", "Venue"]
    row = ["1", _cell(result["checkpoint"]), "-", _percent(accuracy["clean"]),
           f"{_percent(accuracy[robust])} ({told})", name, "-"]  # fmt: skip
    every = list(titles(result).values())
    return "\n".join(
        [
            *_rows(heads, row),
            "",
            *_rows(every, [_percent(value) for value in accuracy.values()]),
            "",
            _cell(protocol(result)),
            "",
        ]
    )


def _rows(heads: Sequence[str], row: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), row)]


def _percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def _cell(text: str) -> str:
    return str(text).replace("|", r"\|")
