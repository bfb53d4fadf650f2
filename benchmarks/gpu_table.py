"""The README's GPU paragraph, made from the recorded runs of `make gpu-check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import gpu_attack_summary, gpu_summary
from .gpu_record import load

NONE = "No run on a GPU has been recorded yet: this page shows no GPU number, and claims none.\n"


def recorded(results: Path) -> list[Path]:
    """benchmarks/results/gpu_<device>.json, each the record of one check."""
    return sorted(results.glob("gpu_*.json"))


def paragraph(results: Path, shown: str) -> str:
    """A table a recorded run; `shown` is how the README calls the folder."""
    parts = [_run(load(path), f"{shown}/{path.name}") for path in recorded(results)]
    return "\n".join(parts) if parts else NONE


def _run(record: dict[str, Any], name: str) -> str:
    gpu, versions = record["environment"]["gpu"], record["environment"]["versions"]
    commit = record["environment"]["commit"]["id"]
    head, *rows = gpu_summary.kernel_rows(record)
    lines = [_row(head), _row(["---"] * len(head)), *map(_row, rows), ""]
    lines += [f"- {line}" for line in gpu_attack_summary.lines(record)]
    lines += [f"- {gpu_summary.of_target(row)}" for row in gpu_summary.targets(record)]
    failed = [s for step in record["steps"].values() for s in step["failures"]]
    lines += ["", f"Failures: {len(failed)}. {'; '.join(failed)}".strip(), "",
              f"Source: [`{name}`]({name}), `make gpu-check` on {gpu['name']}, driver "
              f"{gpu['nvidia_smi'].get('driver_version')}, torch {versions['torch']}, commit "
              f"{commit}; medians of graph replays.", ""]  # fmt: skip
    return "\n".join(lines)


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
