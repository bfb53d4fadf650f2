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
    reduced: Sequence[str],
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
        "weighted": {
            key: weighted_robust_accuracy(accuracy["clean"], value)
            for key, value in accuracy.items()
            if key != "clean"
        },
        "broken_logits": {key: sum(column) for key, column in broken.items()},
        "broken_by": first,
        "reduced": list(reduced),
        "notes": list(notes),
        "seconds": dict(seconds),
        "torch": torch.__version__,
        "verdicts": verdicts,
    }


def titles(result: Mapping[str, Any]) -> dict[str, str]:
    """The title of each column of a result."""
    attacks = [attack.at(result["eps"]) for attack in SUITES[result["suite"]]]
    known = {
        attack.key: attack.title + (" (reduced)" if attack.key in result["reduced"] else "")
        for attack in attacks
    }
    return {key: known.get(key, key) for key in result["accuracy"]}


def table(result: Mapping[str, Any]) -> Table:
    """The accuracies of a result, one column an attack; `weighted` has its means with clean too."""
    shown = Table(title=f"accuracy in % on {result['data']}, {result['architecture']}")
    heads, rows = _figures(result, "")
    for head in heads:
        shown.add_column(head, justify="right")
    for row in rows:
        shown.add_row(*row)
    return shown


def _figures(result: Mapping[str, Any], unit: str) -> tuple[list[str], list[list[str]]]:
    """The heads of a table of all attacks, and its rows."""
    heads, accuracy = list(titles(result).values()), result["accuracy"]
    row = [f"{100 * value:.2f}{unit}" for value in accuracy.values()]
    if result["suite"] != "weighted":
        return heads, [row]
    weighted = [
        f"{100 * result['weighted'][key]:.2f}{unit}" if key in result["weighted"] else "-"
        for key in accuracy
    ]
    return ["", *heads], [["accuracy", *row], ["weighted", *weighted]]


def protocol(result: Mapping[str, Any]) -> str:
    """One line that says what was measured and how."""
    line = (
        f"N={result['n']} (first in data set order), eps={result['eps']:.5g} {result['norm']}, "
        f"{result['precision']} search, fp32 verdicts; {'; '.join(result['attacks'].values())}; "
        f"checkpoint {result['checkpoint']} ({result['selection']})"
    )
    if result.get("surrogate"):
        line += f"; surrogate {result['surrogate']}"
    if result.get("referee"):
        line += f"; {'; '.join(opinion['told'] for opinion in result['referee'].values())}"
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
    if robust in result["reduced"]:
        told += ", reduced"
    heads = ["#", "Model ID", "Paper", "Clean accuracy", "Robust accuracy", "Architecture", "Venue"]
    row = ["1", _cell(result["checkpoint"]), "-", _percent(accuracy["clean"]),
           f"{_percent(accuracy[robust])} ({told})", name, "-"]  # fmt: skip
    every, figures = _figures(result, "%")
    return "\n".join(
        [
            *_rows(heads, [row]),
            "",
            *_rows(every, figures),
            "",
            _cell(protocol(result)),
            "",
        ]
    )


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def _percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def _cell(text: str) -> str:
    return str(text).replace("|", r"\|")
