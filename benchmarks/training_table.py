"""The README's figures of training: whole steps, and the engine beside eager autograd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import step_summary

STEP, ENGINE = "cpu_step.json", "engine_training.json"


def paragraphs(results: Path, shown: str) -> str:
    """What the recorded runs say, nothing for one that is not there; `shown` names the folder."""
    found = ""
    for name, text in ((STEP, steps), (ENGINE, engine)):
        if (results / name).is_file():
            run = json.loads((results / name).read_text(encoding="utf-8"))
            found += f"{text(run, f'[`{shown}/{name}`]({shown}/{name})')}\n"
    return f"\n{found}" if found else ""


def steps(run: dict[str, Any], source: str) -> str:
    info = run["environment"]
    told = (
        "Attack, outer passes, optimiser, data and augmentation; in bf16 autocast covers the outer "
        "passes and the teacher. Overhead is what lies outside of the attack and the passes that "
        "the method needs; the layout is the faster one. The bf16 targets are for CPUs with AMX. "
        f"Source: {source}, `make bench-step` on {info['cpu']}, {info['threads']} threads, "
        f"{info['isa']}, torch {info['torch']}; the fastest of interleaved rounds."
    )
    return "\n".join([*step_summary.rows(run), "", told, ""])


def engine(run: dict[str, Any], source: str) -> str:
    names = {"clean": "clean", "pgd20": "PGD-20"}
    parts = []
    for name, found in run["accuracy"].items():
        verdict = "within" if found["within_noise"] else "OUTSIDE of"
        parts.append(
            f"{names[name]} {found['mean']['engine']:.1f} % and {found['mean']['eager']:.1f} %, "
            f"{verdict} the noise of {found['noise']:.1f} points"
        )
    return (
        f"`{run['method']}` on {run['data']}, trained with the engine's attacks and with eager "
        f"autograd's from {len(run['seeds'])} seeds each: {'; '.join(parts)} (the paired 95 % "
        f"interval). Source: {source}, `make bench-training`.\n"
    )
