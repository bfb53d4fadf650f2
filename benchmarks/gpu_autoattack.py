"""A short AutoAttack on a GPU beside the official code's own operations, and its graphs' share.

A step of `make gpu-check`; alone: python -m benchmarks.gpu_autoattack --record FILE.json

The other side is the official package where it is installed, else `compat="official"`, eager, which
runs the same operations in the same order (equal to the bit on the CPU, tests/autoattack).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastard
from fastard import models
from fastard.autoattack.referee import official_attack, official_images

from .autoattack_contest import surviving
from .gpu_record import put

NETWORK, IMAGES, EPS = "resnet18", 128, 1 / 255
# Of the official 100, 9 and 5,000: enough of each attack to see its rate.
STEPS, TARGETS, QUERIES = 20, 2, 200
LEAST, DIFFERING = 5.0, 1
ROUNDS = 2


def shortened(attack: Any) -> Any:
    """An AutoAttack, the official one or ours, with the settings of this measurement."""
    for part in (attack.apgd, attack.apgd_targeted, attack.fab):
        part.n_iter, part.n_restarts = STEPS, 1
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = TARGETS
    attack.square.n_queries = QUERIES
    return attack


def published(net: nn.Module, device: str) -> tuple[str, Any]:
    """What the official code does, and by whom."""
    try:
        attack = official_attack(net, "Linf", EPS, 0, torch.device(device))
    except ImportError:
        own = fastard.AutoAttack(net, "Linf", EPS, seed=0, verbose=False, compat="official")
        return 'compat="official", eager', shortened(own)
    return "pyautoattack", shortened(attack)


def timed(run: Callable[[], Any], device: str) -> tuple[Any, float]:
    """What the run returns, and its seconds until the device is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    found = run()
    if device != "cpu":
        torch.cuda.synchronize()
    return found, time.perf_counter() - begun


def measure(device: str, images: int = IMAGES, network: str = NETWORK) -> dict[str, Any]:
    """Seconds of both sides and of ours without graphs, the least of two rounds; agreement."""
    torch.manual_seed(0)
    net = models.build(network, in_channels=3, image_size=32).to(device).eval()
    x = torch.rand(images, 3, 32, 32, device=device)
    with torch.no_grad():
        y = net(x).argmax(1)
    who, other = published(net, device)

    def ours(capture: str) -> Tensor:
        attack = shortened(fastard.AutoAttack(net, "Linf", EPS, seed=0, verbose=False))
        make = attack.make_search

        def made(random: bool = False) -> Any:
            search = make(random)
            search.program.capture = capture
            return search

        attack.make_search = made  # type: ignore[method-assign]
        return attack.run_standard_evaluation(x, y, bs=images)

    loops: dict[str, Callable[[], Any]] = {
        who: lambda: official_images(other, net, x, y, images)[0],
        "fastard": lambda: ours("auto"),
        "fastard, no graphs": lambda: ours("never"),
    }
    seconds: dict[str, float] = {}
    left: dict[str, Tensor] = {}
    # The first round compiles, chooses algorithms and records.
    for turn in range(ROUNDS + 1):
        for name, run in loops.items():
            x_adv, took = timed(run, device)
            left[name] = surviving(net, x_adv, y)
            if turn:
                seconds[name] = min(took, seconds.get(name, took))
    differing = {name: int((left[name] != left[who]).sum()) for name in loops if name != who}
    failures = [
        f"autoattack: {name} differs from {who} in {count} of {images} verdicts"
        for name, count in differing.items()
        # Other draws: a robust image may fall in one and not in the other.
        if count > max(DIFFERING, images // 25)
    ]
    ratio = seconds[who] / seconds["fastard"]
    return {
        "network": network, "images": images, "eps": EPS, "published": who,
        "settings": {"steps": STEPS, "targets": TARGETS, "queries": QUERIES},
        "robust": {name: int(kept.sum()) for name, kept in left.items()},
        "differing": differing, "seconds": seconds, "failures": failures,
        "targets": [{
            "case": "AutoAttack, short", "target": "autoattack", "figure": f"x {who}",
            "value": ratio, "at_least": LEAST, "reached": ratio >= LEAST,
        }],
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Adds "autoattack" to the record; 1 where the verdicts differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_autoattack")
    parser.add_argument("--record", type=Path, required=True, help="JSON file to add to")
    arguments = parser.parse_args(argv)
    found = measure("cuda")
    put(arguments.record, found, "autoattack", "cases", f"standard, short, {NETWORK}")
    print(found["seconds"], *found["failures"])
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
