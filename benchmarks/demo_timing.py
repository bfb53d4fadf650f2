"""RSLAD's attack on one batch: `fastard.pgd_kl` beside the published loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import fastard
from fastard.data import Images
from fastard.training.config import Resolved

from . import published, timing

BATCH, WARM_UP, REPEATS, SEED = 128, 3, 30, 0


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs the block on one thread: on so small a network, threads that wait for each other at
    every layer become several times slower when the machine has other work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def compare(
    student: nn.Module, teacher: nn.Module, images: Images, config: Resolved
) -> dict[str, Any]:
    """Times both on the first images, from the same seed, in turns, on the CPU.

    Returns: milliseconds of every repeat, their minima, `ratio` (published / fastard), and how far
        the two adversarial batches agree.
    """
    x = images.float(slice(0, BATCH))
    # The published loop leaves its model in train mode, where training goes on.
    student = copy.deepcopy(student).train()
    with torch.no_grad():
        teacher_logits = teacher.eval()(x)
    attack = {"eps": config.eps, "alpha": config.alpha, "steps": config.steps}

    def ours() -> Tensor:
        return fastard.pgd_kl(student, x, teacher_logits, noise_device="cpu", **attack)

    def theirs() -> Tensor:
        return published.rslad(student, teacher_logits, x, **attack)

    seconds, results = timing.turns(
        {"fastard": ours, "published": theirs}, rounds=REPEATS, warm_up=WARM_UP,
        before=lambda: torch.manual_seed(SEED),
    )  # fmt: skip
    times = {name: [1000 * value for value in values] for name, values in seconds.items()}
    gap = (results["fastard"] - results["published"]).abs()
    fastest = {name: min(values) for name, values in times.items()}
    return {
        "batch": len(x),
        **attack,
        "threads": torch.get_num_threads(),
        "repeats": REPEATS,
        "fastard_ms": round(fastest["fastard"], 3),
        "published_ms": round(fastest["published"], 3),
        "ratio": round(fastest["published"] / fastest["fastard"], 3),
        "all_ms": {name: [round(value, 3) for value in values] for name, values in times.items()},
        "pixels": gap.numel(),
        "pixels_that_differ": int((gap > 0).sum()),
        "largest_difference": gap.max().item(),
    }


def describe(attack: dict[str, Any]) -> tuple[str, str]:
    """What `compare` saw, in two lines."""
    share = 100 * attack["pixels_that_differ"] / attack["pixels"]
    agreement = (
        f"{share:.2g} % of the {attack['pixels']:,} adversarial pixels differ, "
        f"by {attack['largest_difference']:.2g} at most"
        if share
        else f"all {attack['pixels']:,} adversarial pixels are equal to the bit"
    )
    threads = f"{attack['threads']} thread{'' if attack['threads'] == 1 else 's'}"
    return (
        f"RSLAD's attack on a batch of {attack['batch']}, {attack['steps']} steps: "
        f"fastard.pgd_kl {attack['fastard_ms']:.2f} ms, published loop "
        f"{attack['published_ms']:.2f} ms, published / fastard {attack['ratio']:.2f}",
        f"(the least of {attack['repeats']} repeats taken in turns, {threads}, "
        f"RSLAD student; {agreement})",
    )
