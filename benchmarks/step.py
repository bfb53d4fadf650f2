"""Whole training steps on the CPU: python -m benchmarks.step [--only rslad-resnet18 ...].

fastard's method, optimiser and data against the published scripts' steps, batch 32, a WRN-16-4
teacher, in interleaved rounds after one step from equal state has agreed. In bf16 autocast covers
the outer passes and the teacher too; the published step is fp32, as its script runs it.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastard import methods
from fastard.data import Images
from fastard.methods.base import Method
from fastard.methods.registry import METHODS

from . import environment, published_steps, step_parts, timing
from .attack import network
from .attack_record import Record
from .attack_summary import told
from .step_agreement import agreement
from .step_summary import summary

BATCH, IMAGES, TEACHER = 32, 640, "wrn-16-4"
PUBLISHED = {"rslad": published_steps.rslad, "adaad": published_steps.adaad}
Step = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    method: str
    student: str
    rounds: int = 5


CASES = {
    f"{method}-{student}": Case(method, student)
    for method in PUBLISHED
    for student in ("resnet18", "mobilenetv2")
}


def sgd(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9, weight_decay=2e-4)


def step(method: Method, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, low: bool) -> Any:
    """The loop of a user of fastard."""
    method.student.train()
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=low):
        loss, _ = method(x, y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def forever(images: Images, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The trainer's batches, pass after pass."""
    while True:
        for batch in images.batches(size, shuffle=True, drop_last=True):
            yield batch.x, batch.y


def ours(
    case: Case, net: nn.Module, teacher: nn.Module, images: Images, low: bool, form: str, size: int
) -> tuple[Method, Step]:
    """A copy of the network under the method, and its whole step."""
    memory = torch.channels_last if form == "channels_last" else torch.contiguous_format
    student = copy.deepcopy(net).to(memory_format=memory)
    method = methods.build(case.method, student, [teacher])
    optimizer, batches = sgd(student), forever(images, size)
    return method, lambda: step(method, optimizer, *next(batches), low)


def data_share(images: Images, size: int) -> float:
    """Seconds of a batch with its augmentation, whole passes over the images."""
    found = []
    for _ in range(3):
        begun = time.perf_counter()
        count = sum(1 for _ in images.batches(size, shuffle=True, drop_last=True))
        found.append((time.perf_counter() - begun) / count)
    return min(found)


def parts(method: Method, run: Step, rounds: int) -> dict[str, float]:
    """Seconds of the round with the least rest: attack, teacher, student, backward, all."""
    found: list[dict[str, float]] = []
    with step_parts.watched(method, method.student) as clock:
        for _ in range(rounds):
            clock.seconds.clear()
            begun = time.perf_counter()
            run()
            found.append({**clock.seconds, "step": time.perf_counter() - begun})
    return min(found, key=step_parts.rest)


def measure(case: Case, batch: int = BATCH, images: int = IMAGES) -> dict[str, Any]:
    """Agreement, seconds of every step in turns, where ours go, what its data cost."""
    net, teacher = network(case.student), network(TEACHER).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    held = Images(pixels, torch.randint(10, (images,), generator=generator), "crop-flip")
    published = PUBLISHED[case.method]
    agreed = agreement(case.method, net, teacher, published, held.float(slice(0, batch)),
                       held.y[:batch])  # fmt: skip
    theirs = copy.deepcopy(net)
    optimizer = sgd(theirs)
    loader = published_steps.batches(held.x, held.y, batch)
    steps: dict[str, Step] = {
        "published": lambda: published(theirs, teacher, optimizer, *next(loader))
    }
    built: dict[str, Method] = {}
    for precision in ("fp32", "bf16"):
        for form in ("nchw", "channels_last"):
            name = f"fastard {precision} {form}"
            built[name], steps[name] = ours(
                case, net, teacher, held, precision == "bf16", form, batch
            )
    samples, _ = timing.turns(steps, rounds=case.rounds)
    found: dict[str, Any] = {
        "method": case.method, "model": f"{case.method}-{case.student}", "student": case.student,
        "teacher": TEACHER, "batch": batch, "agreement": agreed,
        "seconds": {key: timing.plain(values) for key, values in samples.items()},
        "parts": {name: parts(method, steps[name], case.rounds) for name, method in built.items()},
        "data_seconds": data_share(held, batch),
    }  # fmt: skip
    return found | {"lines": summary(found)}


def main(argv: list[str] | None = None) -> int:
    """Measures, prints, and writes after every case; a method that is not there is recorded so."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, help="at most so many")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_step.json"))
    args = parser.parse_args(argv)
    try:
        record = Record(args.out, environment.of_cpu(), whole=set(args.only) == set(CASES))
    except ValueError as error:
        parser.error(str(error))
    for name in args.only:
        case = CASES[name]
        if case.method not in METHODS:
            why = f"fastard has no method {case.method!r}"
            record.put({"model": name, "method": case.method, "not_measured": why})
            print(f"{name}: not measured, {why}")
            continue
        case = Case(case.method, case.student, min(case.rounds, args.rounds or case.rounds))
        idle = timing.idle_share()
        found = measure(case, args.batch)
        record.put(found | {"idle": idle, "commit": environment.commit()})
        print(f"{name}, batch {args.batch}; idle share before {idle}")
        told(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
