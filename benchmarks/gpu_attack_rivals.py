"""Whole attacks on a GPU beside the published loop around `torch.compile` of the student.

A step of `make gpu-check` of its own, rival by rival, since compiling takes minutes; alone:
python -m benchmarks.gpu_attack_rivals --record FILE.json --seconds 200
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import attack_rivals, gpu_attack
from .gpu_record import put


def variants(networks: Sequence[str], precisions: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """(layout, mode, network, precision): what is most likely the fastest first."""
    yield from product(("channels_last", "nchw"), ("default", "max-autotune"), networks, precisions)


def main(argv: Sequence[str] | None = None) -> int:
    """Adds one rival after another, each in turns with fastard, while time is left."""
    begun = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_attack_rivals")
    parser.add_argument("--record", type=Path, required=True, help="JSON file to add to")
    parser.add_argument("--seconds", type=float, required=True, help="begin none after these")
    arguments = parser.parse_args(argv)
    left_out = []
    known: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}
    for form, mode, name, precision in variants(gpu_attack.NETWORKS, gpu_attack.PRECISIONS):
        case = f"{name} {precision} {mode} {form}"
        if time.monotonic() - begun > arguments.seconds:
            left_out.append(case)
            continue
        if name not in known:
            known[name] = (gpu_attack.network("cuda", name), *gpu_attack.batch("cuda"))
        model, x, teacher = known[name]
        own = f"fastard {precision}"
        torch._dynamo.reset()
        # tf32 is what torch's convolutions take by default, outside of autocast.
        rival = attack_rivals.compiled(
            model, x, teacher, mode, form, "bf16" if precision == "bf16" else "fp32"
        )
        loops = {own: gpu_attack.ours(model, x, teacher)[own],
                 "compile": lambda run=rival: run(gpu_attack.STEPS)}  # fmt: skip
        try:
            seconds, _ = gpu_attack.in_turn(loops, gpu_attack.by_events)
        except Exception as error:  # whatever the compiler raises on this machine
            said = (str(error).splitlines() or [type(error).__name__])[0]
            found: dict[str, Any] = {"refused": said, "failures": []}
        else:
            found = {
                "seconds": seconds,
                "failures": [],
                "median_seconds": {k: statistics.median(v) for k, v in seconds.items()},
            }
        put(arguments.record, found, "attack rivals", "cases", case)
        print(f"{case}: {found.get('median_seconds', found.get('refused'))}", flush=True)
    if left_out:
        put(arguments.record, left_out, "attack rivals", "left_out")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
