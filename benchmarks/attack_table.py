"""The README's tables of whole attacks, from cpu_attack.json."""

from __future__ import annotations

from typing import Any

from .attack_summary import compiled

Run = dict[str, Any]


def attack_rows(run: Run) -> list[str]:
    """One row a network: whole attacks beside the published loop, compile and the floor."""
    rows = [
        "| PGD-10 on KL, CPU | published loop | fastest `torch.compile` | fastard fp32 | "
        "fastard bf16 |",
        "|---|---|---|---|---|",
    ]
    for network in run["networks"]:
        best = {name: value["min"] for name, value in network["seconds"].items()}
        rivals = [("", compiled(network["seconds"], "fp32")),
                  (" in bf16", compiled(network["seconds"], "bf16"))]  # fmt: skip
        steps = "" if network["steps"] == 10 else f", PGD-{network['steps']}"
        cells = [
            f"{network['model']}, batch {network['batch']}{steps}",
            f"{best['published']:.2f} s",
            "; ".join(f"{took:.2f} s{what}" for what, took in rivals if took is not None),
        ]
        for precision in ("fp32", "bf16"):
            name = f"fastard {precision}"
            rival = compiled(network["seconds"], precision)
            figures = [
                _ratio(line, rival if "compile" in line["what"] else best["published"],
                       best.get(f"floor {precision}"))
                for line in network["lines"] if line["what"].startswith(name)
            ]  # fmt: skip
            cells.append(f"{best[name]:.2f} s: {'; '.join(figures)}")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _ratio(line: dict[str, Any], other: float | None, floor: float | None) -> str:
    """A figure in words; beside a missed one, what the floor itself would reach."""
    what, value = line["what"], line["value"]
    if "floor" in what:
        return told(line, f"{value:.2f} of the floor's time", "at most {:g}")
    rival = "`torch.compile`" if "compile" in what else "the loop"
    why = "" if other is None or floor is None else f"; the floor itself: {other / floor:.2f}×"
    return told(line, f"{value:.2f}× {rival}", "{:g}", why=why)


def told(line: dict[str, Any], figure: str, bound: str, factor: float = 1.0, why: str = "") -> str:
    """The figure with its target, which the record says was reached or not."""
    if line["target"] is None:
        return figure
    verdict = "" if line["reached"] else f", not reached{why}"
    return f"{figure} (target {bound.format(factor * line['target'])}{verdict})"


def cost_rows(run: Run) -> list[str]:
    """What an attack costs beside its passes, where that was measured; else nothing."""
    rows = []
    for network in run["networks"]:
        if "costs" not in network:
            continue
        lines = {line["what"]: line for line in network["lines"]}
        cells = [network["model"]]
        for precision in ("fp32", "bf16"):
            line = lines[f"refresh {precision}, share of an attack"]
            cell = told(line, f"{100 * line['value']:.1f} %", "at most {:g} %", 100)
            cells.append(cell if line["target"] else f"{cell} (target at PGD-10 only)")
        line = lines["set-up, seconds"]
        cells.append(told(line, f"{line['value']:.2f} s", "at most {:g} s"))
        held = lines.get("peak memory over eager autograd's")
        batch = network["costs"]["memory_batch"]
        cells.append("" if held is None else told(
            held, f"{held['value']:.2f} at batch {batch}", "at most {:g}"))  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    head = ["| beside the passes, CPU | renewed weights, share of the attack, fp32 | bf16 | set-up,"
            " once a network | peak memory of eager autograd's |",
            "|---|---|---|---|---|"]  # fmt: skip
    return [*head, *rows] if rows else []
