"""Whole attacks, PGD-10 on KL: python -m benchmarks.attack [--only resnet18 ...] [--out FILE].

fastard against the published RSLAD loop and against `torch.compile` of the student inside it, in
interleaved rounds, each run after a change of the weights; the bare convolutions beside. Then what
an attack costs beside its passes: renewed weights, set-up, memory. The file is rewritten after
every network, and networks that a run leaves out keep what an earlier one found.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import fastard
from fastard.engine import Program
from fastard.engine.plan import Plan

from . import (
    attack_process,
    attack_refresh,
    attack_rivals,
    environment,
    networks,
    published,
    timing,
)
from .attack_floor import floor
from .attack_record import Record
from .attack_summary import summary, told


@dataclass(frozen=True)
class Case:
    """A network and how much of it is timed; memory is compared at the batch of the recipes."""

    batch: int = 32
    steps: int = 10
    rounds: int = 5
    memory_batch: int = 128
    modes: tuple[str, ...] = ("default", "max-autotune")


# So large a network would take most of the time: fewer images, steps and rounds, alike for all.
CASES = {
    "resnet18": Case(), "mobilenetv2": Case(), "preactresnet18": Case(rounds=3),
    "wrn-28-10": Case(batch=8, steps=4, rounds=2, memory_batch=8, modes=("default",)),
}  # fmt: skip


network = networks.build


def measure(name: str, case: Case, costs: bool = True) -> dict[str, Any]:
    """Seconds of every loop on one network, ratios, the distance to the floor, the costs."""
    net = network(name)
    x, logits = torch.rand(case.batch, 3, 32, 32), torch.randn(case.batch, 10) * 2
    weight = next(net.parameters()).data

    def ours(precision: str) -> Callable[[], Any]:
        return lambda: fastard.pgd_kl(net, x, logits, steps=case.steps, precision=precision)

    loops: dict[str, Callable[[], Any]] = {
        "published": lambda: published.rslad(net, logits, x, steps=case.steps),
        "fastard fp32": ours("fp32"), "fastard bf16": ours("bf16"),
    }  # fmt: skip
    begun = time.perf_counter()
    loops["fastard fp32"]()
    first = time.perf_counter() - begun
    plans = {}
    for precision in ("fp32", "bf16"):
        program = Program(net, precision)
        with program.running(x):
            plan = program.plan
        if plan is None:
            raise RuntimeError(f"{name} in {precision} has no plan: {program.made}")
        plans[precision], once = plan, floor(plan, net, x)
        loops[f"floor {precision}"] = lambda run=once: [run() for _ in range(case.steps)]
    rivals = attack_rivals.fastest(net, x, logits, case.modes)
    loops |= {key: lambda run=run: run(case.steps) for key, run in rivals.loops.items()}
    # As an optimiser would: every attack copies the weights anew.
    samples, _ = timing.turns(loops, rounds=case.rounds, before=lambda: weight.mul_(1.0))
    found: dict[str, Any] = {
        "model": name, "batch": case.batch, "steps": case.steps,
        "first_call_seconds": round(first, 3),
        "seconds": {key: timing.plain(values) for key, values in samples.items()},
        "trials": rivals.trials,
    }  # fmt: skip
    if costs:
        found["costs"] = beside_the_passes(name, case, plans, loops)
    return found | {"lines": summary(found)}


def beside_the_passes(
    name: str, case: Case, plans: dict[str, Plan], loops: dict[str, Callable[[], Any]]
) -> dict[str, Any]:
    """What an attack costs beside its passes."""
    return {
        "refresh": {precision: attack_refresh.share(plan, loops[f"fastard {precision}"])
                    for precision, plan in plans.items()},
        "set_up_seconds": attack_process.set_up(name, case.batch),
        "memory_share": attack_process.memory_share(name, case.memory_batch),
        "memory_batch": case.memory_batch,
    }  # fmt: skip


def costs_again(found: dict[str, Any], case: Case) -> dict[str, Any]:
    """A recorded network with its costs measured anew, its seconds as they are."""
    name = found["model"]
    net = network(name)
    x, logits = torch.rand(case.batch, 3, 32, 32), torch.randn(case.batch, 10) * 2
    loops, plans = {}, {}
    for precision in ("fp32", "bf16"):
        attack = fastard.PGD(net, loss="kl", steps=case.steps, precision=precision)
        attack(x, logits)
        with attack.program.running(x):
            plan = attack.program.plan
        if plan is None:
            raise RuntimeError(f"{name} in {precision} has no plan: {attack.program.made}")
        plans[precision] = plan
        loops[f"fastard {precision}"] = lambda attack=attack: attack(x, logits)
    found = found | {"costs": beside_the_passes(name, case, plans, loops)}
    return found | {"lines": summary(found)}


def main(argv: list[str] | None = None) -> int:
    """Measures, prints, and writes after every network; 2 where the file is another machine's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attack")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="networks")
    parser.add_argument("--batch", type=int, help="at most so many images")
    parser.add_argument("--rounds", type=int, help="at most so many rounds")
    parser.add_argument("--compile", nargs="*", help="modes of torch.compile; none: no rival")
    parser.add_argument(
        "--costs-only", action="store_true",
        help="measure anew what an attack costs beside its passes alone")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_attack.json"))
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", category=UserWarning)
    try:
        whole = set(args.only) == set(CASES) and not args.costs_only
        record = Record(args.out, environment.of_cpu(), whole)
    except ValueError as error:
        parser.error(str(error))
    commit = environment.commit()
    for name in args.only:
        case = CASES[name]
        case = replace(case, batch=min(case.batch, args.batch or case.batch),
                       rounds=min(case.rounds, args.rounds or case.rounds),
                       modes=case.modes if args.compile is None else tuple(args.compile)
                       )  # fmt: skip
        idle, begun = timing.idle_share(), time.perf_counter()
        if args.costs_only:
            found = costs_again(record.get(name), case)
            record.put(found | {"costs_idle": idle, "costs_commit": commit})
        else:
            found = measure(name, case) | {"idle": idle, "commit": commit}
            record.put(found | {"took_seconds": round(time.perf_counter() - begun, 1)})
        took = round(time.perf_counter() - begun, 1)
        print(f"{name}, batch {case.batch}, PGD-{case.steps}; idle share before {idle}, {took} s")
        told(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
