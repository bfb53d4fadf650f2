"""Whole attacks on a GPU, PGD-10 on KL, batch 128: fastard beside the published RSLAD loop, the
same loop in channels_last under autocast, and the floor. ResNet-18 and MobileNetV2.

A step of `make gpu-check`; alone: python -m benchmarks.gpu_attack --record FILE.json
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastard
from fastard import models, ops

from . import attack_rivals, gpu_attack_floor, published, timing
from .gpu_record import put
from .timing import Clock, by_events

# The first call checks values, the second is recorded, from the third on all are alike.
BATCH, STEPS, EPS, ALPHA, ROUNDS, WARM_UP = 128, 10, 8 / 255, 2 / 255, 5, 3
NETWORKS, PRECISIONS = ("resnet18", "mobilenetv2"), ("tf32", "bf16")
ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}
# The network's passes need not be deterministic, and a sign near 0 flips with the last bit.
MOST_LOSS_GAP = {"tf32": 0.02, "bf16": 0.05}
Loops = dict[str, Callable[[], Tensor]]


def network(device: str, name: str = "resnet18") -> nn.Module:
    """A CIFAR network with BN statistics of some data, not those of its construction."""
    torch.manual_seed(0)
    model = models.build(name, num_classes=10).to(device)
    with torch.no_grad():
        for _ in range(5):
            model(torch.rand(BATCH, 3, 32, 32, device=device))
    return model


def batch(device: str) -> tuple[Tensor, Tensor]:
    """Images and the logits of some teacher."""
    x = torch.rand(BATCH, 3, 32, 32, device=device)
    return x, 3 * torch.randn(BATCH, 10, device=device)


def ours(model: nn.Module, x: Tensor, teacher: Tensor) -> Loops:
    """fastard's attack in each precision, its weights renewed every time; on a GPU one graph."""
    return {
        f"fastard {p}": lambda p=p: fastard.pgd_kl(
            model, x, teacher, precision=p, noise_device="cpu", **ATTACK)
        for p in PRECISIONS
    }  # fmt: skip


def captured(model: nn.Module, x: Tensor, teacher: Tensor) -> dict[str, str | None]:
    """What `explain` says of the graph that each of `ours` has been timed as."""
    said = {}
    for p in PRECISIONS:
        attack = fastard.PGD(model, precision=p, noise_device="cpu", **ATTACK)
        attack(x, teacher)
        said[p] = attack.program.captured
    return said


def published_loops(model: nn.Module, x: Tensor, teacher: Tensor) -> Loops:
    """The published loop as it is, and in channels_last under bf16 autocast."""
    last = torch.channels_last
    moved, given = copy.deepcopy(model).to(memory_format=last), x.contiguous(memory_format=last)

    def low() -> Tensor:
        with attack_rivals.autocast(x, "bf16"):
            return published.rslad(moved, teacher, given, **ATTACK)

    return {"published": lambda: published.rslad(model, teacher, x, **ATTACK),
            "eager bf16 channels_last": low}  # fmt: skip


def in_turn(loops: Loops, clock: Clock, rounds: int = ROUNDS) -> tuple[dict[str, list[float]], Any]:
    """Seconds of every loop, taken in turn from equal noise, and their results."""
    return timing.turns(
        loops, clock, rounds=rounds, warm_up=WARM_UP, before=lambda: torch.manual_seed(1)
    )


def compare(
    model: nn.Module, x: Tensor, teacher: Tensor, clock: Clock, floors: Loops | None = None
) -> dict[str, Any]:
    """All attacks in turn; `clock` runs one and returns seconds and result."""
    loops = ours(model, x, teacher) | published_loops(model, x, teacher)
    seconds, results = in_turn(loops | (floors or {}), clock)
    losses, failures = {}, []
    model.eval()
    for name in loops:
        x_adv = results[name]
        if (x_adv - x).abs().max() > EPS + 1e-6 or x_adv.min() < 0 or x_adv.max() > 1:
            failures.append(f"attack: {name} leaves the ball or the box")
        with torch.no_grad():
            losses[name] = ops.logit_loss(model(x_adv), teacher)[0].mean().item()
    for precision in PRECISIONS:
        gap = abs(losses[f"fastard {precision}"] / losses["published"] - 1)
        if not gap <= MOST_LOSS_GAP[precision]:
            failures.append(f"attack: the losses reached differ in {precision}: {losses}")
    said = captured(model, x, teacher)
    if x.is_cuda and not all("one graph" in (line or "") for line in said.values()):
        failures.append(f"attack: not captured: {said}")
    return {
        "captured": said,
        "batch": len(x), **ATTACK, "rounds": ROUNDS,
        "seconds": seconds,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "loss_reached": losses,
        "pixels_that_differ": {
            name: (results[name] != results["published"]).float().mean().item()
            for name in loops if name != "published"
        },
        "tf32": {"convolutions": torch.backends.cudnn.allow_tf32,
                 "matrix_products": torch.backends.cuda.matmul.allow_tf32},
        "failures": failures,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Adds to the record network by network; 1 where an attack leaves its ball or falls short."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_attack")
    parser.add_argument("--record", type=Path, required=True, help="JSON file to add to")
    arguments = parser.parse_args(argv)
    failed = False
    for name in NETWORKS:
        model = network("cuda", name)
        x, teacher = batch("cuda")
        floors = gpu_attack_floor.replays(model, x, STEPS, PRECISIONS)
        found = compare(model, x, teacher, by_events, floors)
        put(arguments.record, found, "attack", "cases", name)
        medians = {key: f"{1e3 * took:.2f} ms" for key, took in found["median_seconds"].items()}
        print(f"{name}: {medians}", *found["failures"], flush=True)
        failed |= bool(found["failures"])
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
