"""A whole attack on a GPU: fastard.pgd_kl beside the published RSLAD loop, PGD-10, batch 128.

A step of `make gpu-check`; alone: python -m benchmarks.gpu_attack --record FILE.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastard
from benchmarks import published
from benchmarks.gpu_record import put
from fastard import models, ops

BATCH, STEPS, EPS, ALPHA, ROUNDS, WARM_UP = 128, 10, 8 / 255, 2 / 255, 5, 2
# The network's passes need not be deterministic, and a sign near 0 flips with the last bit.
MOST_LOSS_GAP = 0.02


def network(device: str) -> nn.Module:
    """The CIFAR ResNet-18 with BN statistics of some data, not those of its construction."""
    torch.manual_seed(0)
    model = models.build("resnet18", num_classes=10).to(device)
    with torch.no_grad():
        for _ in range(5):
            model(torch.rand(BATCH, 3, 32, 32, device=device))
    return model


def compare(
    model: nn.Module, x: Tensor, teacher: Tensor, clock: Callable[[Callable[[], Tensor]], Any]
) -> dict[str, Any]:
    """Both attacks in turn from equal noise; `clock` runs one and returns seconds and result."""
    attack = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}
    loops: dict[str, Callable[[], Tensor]] = {
        "fastard": lambda: fastard.pgd_kl(model, x, teacher, noise_device="cpu", **attack),
        "published": lambda: published.rslad(model, teacher, x, **attack),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    results = {}
    for turn in range(-WARM_UP, ROUNDS):
        for name in sorted(loops, reverse=turn % 2 == 1):
            torch.manual_seed(1)
            took, results[name] = clock(loops[name])
            if turn >= 0:
                seconds[name].append(took)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    losses, failures = {}, []
    model.eval()
    for name, x_adv in results.items():
        if (x_adv - x).abs().max() > EPS + 1e-6 or x_adv.min() < 0 or x_adv.max() > 1:
            failures.append(f"attack: {name} leaves the ball or the box")
        with torch.no_grad():
            losses[name] = ops.logit_loss(model(x_adv), teacher)[0].mean().item()
    if abs(losses["fastard"] / losses["published"] - 1) > MOST_LOSS_GAP:
        failures.append(f"attack: the losses reached differ: {losses}")
    return {
        "network": "resnet18", "batch": len(x), **attack, "rounds": ROUNDS,
        "seconds": seconds, "median_seconds": medians,
        "times_faster_than_published": medians["published"] / medians["fastard"],
        "loss_reached": losses,
        "pixels_that_differ":
            (results["fastard"] != results["published"]).float().mean().item(),
        "tf32": {"convolutions": torch.backends.cudnn.allow_tf32,
                 "matrix_products": torch.backends.cuda.matmul.allow_tf32},
        "failures": failures,
    }  # fmt: skip


def by_events(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    result = run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3, result


def by_host(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    begun = time.perf_counter()
    result = run()
    return time.perf_counter() - begun, result


def main(argv: Sequence[str] | None = None) -> int:
    """Adds "attack" to the record; 1 where an attack leaves its ball or falls short."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_attack")
    parser.add_argument("--record", type=Path, required=True, help="JSON file to add to")
    arguments = parser.parse_args(argv)
    model = network("cuda")
    x = torch.rand(BATCH, 3, 32, 32, device="cuda")
    teacher = 3 * torch.randn(BATCH, 10, device="cuda")
    found = compare(model, x, teacher, by_events)
    put(arguments.record, found, "attack")
    print(f"published / fastard: {found['times_faster_than_published']:.2f}", *found["failures"])
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
