"""What the seconds of whole training steps amount to, and the README's table of them."""

from __future__ import annotations

from typing import Any

from .attack_summary import line
from .attack_table import told
from .step_parts import rest

TIMES = {("resnet18", "fp32"): 1.2, ("resnet18", "bf16"): 4.0, ("mobilenetv2", "fp32"): 2.0}
OVERHEAD, DATA = 0.03, 0.02


def fastest(found: dict[str, Any], precision: str) -> str:
    """The layout in which this precision's step is faster."""
    names = [name for name in found["seconds"] if name.startswith(f"fastard {precision} ")]
    return min(names, key=lambda name: found["seconds"][name]["min"])


def summary(found: dict[str, Any]) -> list[dict[str, Any]]:
    lines, best = [], {name: value["min"] for name, value in found["seconds"].items()}
    for precision in ("fp32", "bf16"):
        name = fastest(found, precision)
        parts = found["parts"][name]
        lines += [
            line(f"{precision} against the published step", best["published"] / best[name],
                 TIMES.get((found["student"], precision))),
            line(f"{precision} overhead, share of the step", rest(parts) / parts["step"], OVERHEAD,
                 True),
            line(f"{precision} data, share of the step", found["data_seconds"] / best[name], DATA,
                 True),
        ]  # fmt: skip
    return lines


def rows(run: dict[str, Any]) -> list[str]:
    """A row a case; one that was not measured says why."""
    table = ["| whole training step, CPU | published script's | fastard fp32 | fastard bf16 |",
             "|---|---|---|---|"]  # fmt: skip
    for found in run["networks"]:
        if "not_measured" in found:
            table.append(f"| {found['model']} | not measured: {found['not_measured']} | | |")
            continue
        lines = {row["what"]: row for row in found["lines"]}
        seconds = found["seconds"]
        cells = [f"{found['method']}, {found['student']} student, {found['teacher']} teacher, batch"
                 f" {found['batch']}", f"{seconds['published']['min']:.2f} s"]  # fmt: skip
        for precision in ("fp32", "bf16"):
            ratio = lines[f"{precision} against the published step"]
            cell = [told(ratio, f"{ratio['value']:.2f}×", "{:g}")]
            for what in ("overhead", "data"):
                share = lines[f"{precision} {what}, share of the step"]
                cell.append(
                    told(share, f"{what} {100 * share['value']:.1f} %", "at most {:g} %", 100)
                )
            took = seconds[fastest(found, precision)]["min"]
            cells.append(f"{took:.2f} s: {'; '.join(cell)}")
        table.append(f"| {' | '.join(cells)} |")
    return table
