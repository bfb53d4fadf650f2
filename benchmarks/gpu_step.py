"""Whole RSLAD training steps on a GPU beside the published script's: ResNet-18, WRN-34-10 teacher.

A step of `make gpu-check`; alone: python -m benchmarks.gpu_step --record FILE.json
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastard import methods, models

from . import published_steps
from .gpu_attack import by_events, in_turn
from .gpu_record import put
from .step import sgd, step
from .step_agreement import agreement

BATCH, STUDENT, TEACHER, ROUNDS = 128, "resnet18", "wrn-34-10", 5


def measure(device: str, batch: int = BATCH, teacher_name: str = TEACHER) -> dict[str, Any]:
    """Seconds of the published step and ours, agreement first; images are on the device before.

    "tf32" is torch's default for convolutions; in bf16 autocast covers outer passes and teacher.
    """
    torch.manual_seed(0)
    net = models.build(STUDENT).to(device).train()
    teacher = models.build(teacher_name).to(device).eval()
    x = torch.rand(batch, 3, 32, 32, device=device)
    y = torch.randint(10, (batch,), device=device)
    found: dict[str, Any] = {"batch": batch, "student": STUDENT, "teacher": teacher_name}
    try:
        found |= {"agreement": agreement("rslad", net, teacher, published_steps.rslad, x, y),
                  "failures": []}  # fmt: skip
    except RuntimeError as error:
        found["failures"] = [f"training step: {error}"]
        return found
    theirs = copy.deepcopy(net)
    optimizer = sgd(theirs)
    loops: dict[str, Callable[[], Any]] = {
        "published": lambda: published_steps.rslad(theirs, teacher, optimizer, x, y)
    }
    for precision in ("tf32", "bf16"):
        student = copy.deepcopy(net).to(memory_format=torch.channels_last)
        method = methods.build("rslad", student, [teacher])
        own = sgd(student)
        loops[f"fastard {precision}"] = lambda m=method, o=own, low=precision == "bf16": step(
            m, o, x, y, low)  # fmt: skip
    seconds, _ = in_turn(loops, by_events, ROUNDS)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return found | {"seconds": seconds, "median_seconds": medians}


def main(argv: Sequence[str] | None = None) -> int:
    """Adds "training step" to the record; 1 where the steps disagree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_step")
    parser.add_argument("--record", type=Path, required=True, help="JSON file to add to")
    arguments = parser.parse_args(argv)
    found = measure("cuda")
    put(arguments.record, found, "training step", "cases", f"rslad {STUDENT}")
    print(found.get("median_seconds"), *found["failures"])
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
