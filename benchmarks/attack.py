"""Whole attacks, PGD-10 on KL: python -m benchmarks.attack [--models resnet18 ...] [--out FILE].

fastard against the published RSLAD loop and against `torch.compile` of the student inside it, in
interleaved rounds, each run after a change of the weights; the bare convolutions beside.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastard
from benchmarks import published, timing
from benchmarks.attack_floor import floor
from fastard import models
from fastard.engine import Program
from fastard.files import write_json

STEPS = 10
BATCH = {"wrn-28-10": 8}
TARGETS = {
    ("mobilenetv2", "fastard fp32"): 3.0, ("mobilenetv2", "fastard bf16"): 6.0,
    ("resnet18", "fastard fp32"): 1.25, ("resnet18", "fastard bf16"): 5.0,
}  # fmt: skip
COMPILE_TARGET = {"resnet18": 1.1}
FLOOR_TARGET = {"mobilenetv2": 1.6}


def network(name: str) -> nn.Module:
    """A network with the statistics of a trained one: default BN makes slow denormals."""
    torch.manual_seed(0)
    net = models.build(name)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return net.train()


def compiled_loops(
    net: nn.Module, x: Tensor, logits: Tensor, modes: tuple[str, ...]
) -> dict[str, Callable[[], Any]]:
    """The published loop around torch.compile of the student, parameters frozen."""
    found: dict[str, Callable[[], Any]] = {}
    for mode in modes:
        for form in ("nchw", "channels_last"):
            torch._dynamo.reset()
            student = copy.deepcopy(net).requires_grad_(False)
            given = x
            if form == "channels_last":
                student = student.to(memory_format=torch.channels_last)
                given = x.contiguous(memory_format=torch.channels_last)
            module = torch.compile(student, mode=mode)

            def run(m: Any = module, g: Tensor = given) -> Tensor:
                return published.rslad(m, logits, g, steps=STEPS)

            try:
                run()
            except Exception as error:  # whatever the compiler raises on this machine
                print(f"torch.compile {mode} {form} failed: {str(error).splitlines()[0]}")
                continue
            found[f"compile {mode} {form}"] = run
    return found


def measure(name: str, batch: int, rounds: int, modes: tuple[str, ...]) -> dict[str, Any]:
    """Seconds of every loop on one network, ratios, and the distance to the floor."""
    net = network(name)
    x, logits = torch.rand(batch, 3, 32, 32), torch.randn(batch, 10) * 2
    weight = next(net.parameters()).data

    def ours(precision: str) -> Callable[[], Any]:
        return lambda: fastard.pgd_kl(net, x, logits, steps=STEPS, precision=precision)

    loops: dict[str, Callable[[], Any]] = {
        "published": lambda: published.rslad(net, logits, x, steps=STEPS),
        "fastard fp32": ours("fp32"), "fastard bf16": ours("bf16"),
    }  # fmt: skip
    begun = time.perf_counter()
    loops["fastard fp32"]()
    first = time.perf_counter() - begun
    floors: dict[str, Callable[[], Any]] = {}
    for precision in ("fp32", "bf16"):
        program = Program(net, precision)
        with program.running(x):
            plan = program.plan
        if plan is None:
            raise RuntimeError(f"{name} in {precision} has no plan: {program.made}")
        floors[f"floor {precision}"] = floor(plan, net, x)
    loops |= floors | compiled_loops(net, x, logits, modes)
    for run in loops.values():
        run()
    samples: dict[str, list[float]] = {key: [] for key in loops}
    for _ in range(rounds):
        for key, run in loops.items():
            weight.mul_(1.0)  # as an optimiser would: every attack copies the weights anew
            begun = time.perf_counter()
            for _ in range(STEPS if key in floors else 1):
                run()
            samples[key].append(time.perf_counter() - begun)
    return summary(name, batch, first, samples)


def summary(name: str, batch: int, first: float, samples: dict[str, list[float]]) -> dict[str, Any]:
    """Ratios of minima, with the targets of each."""
    best = {key: min(values) for key, values in samples.items()}
    compiled = {k: v for k, v in best.items() if k.startswith("compile")}
    lines: list[dict[str, Any]] = []

    def line(what: str, value: float, target: float | None, most: bool = False) -> None:
        reached = None if target is None else (value <= target if most else value >= target)
        lines.append({"what": what, "value": round(value, 3), "target": target, "reached": reached})

    for precision in ("fp32", "bf16"):
        key = f"fastard {precision}"
        line(f"{key} against the published loop", best["published"] / best[key],
             TARGETS.get((name, key)))  # fmt: skip
        line(f"{key} over the floor", best[key] / best[f"floor {precision}"],
             FLOOR_TARGET.get(name, 1.25), True)  # fmt: skip
    if compiled:
        line("fastard fp32 against the fastest torch.compile",
             min(compiled.values()) / best["fastard fp32"], COMPILE_TARGET.get(name, 1.3)
         )  # fmt: skip
    return {
        "model": name, "batch": batch, "steps": STEPS, "first_call_seconds": round(first, 3),
        "seconds": {k: {"min": min(v), "median": statistics.median(v), "rounds": len(v)}
                    for k, v in samples.items()},
        "lines": lines,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Measures, prints, and writes after every network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenetv2", "preactresnet18",
                                                        "wrn-28-10"])  # fmt: skip
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", nargs="*", default=["default", "max-autotune"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_attack.json"))
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", category=UserWarning)
    run: dict[str, Any] = {"environment": timing.environment(), "idle": timing.idle_share(),
                           "networks": []}  # fmt: skip
    for name in args.models:
        batch = min(args.batch, BATCH.get(name, args.batch))
        found = measure(name, batch, args.rounds, tuple(args.compile))
        run["networks"].append(found)
        write_json(args.out, run)
        print(f"{name}, batch {batch}, PGD-{STEPS}; idle share before {run['idle']}")
        for key, value in found["seconds"].items():
            print(f"  {key:36s} {value['min'] * 1e3:8.1f} ms")
        for row in found["lines"]:
            target = (
                ""
                if row["target"] is None
                else (
                    f" (target {row['target']:g}: {'reached' if row['reached'] else 'NOT reached'})"
                )
            )
            print(f"  {row['what']:50s} {row['value']:.2f}{target}")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
