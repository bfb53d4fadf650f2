"""The share of an attack that renewing the weights takes: folding them, and packing the copies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastard.engine.convolve import OneDNN
from fastard.engine.plan import Plan


@contextmanager
def watched(plan: Plan) -> Iterator[list[float]]:
    """Collects the seconds of every renewal of the plan's copies (`look`, then `renew`) and of
    every packing after one."""
    spent: list[float] = []

    def timed(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begun = time.perf_counter()
            try:
                return run(*arguments)
            finally:
                spent.append(time.perf_counter() - begun)

        return call

    kernels = [kernel for kernel in plan.kernels if isinstance(kernel, OneDNN)]
    kept = [kernel.ops for kernel in kernels]
    plan.look, plan.renew = timed(plan.look), timed(plan.renew)  # type: ignore[method-assign]
    for kernel in kernels:
        own = kernel.ops
        kernel.ops = own._replace(pack=timed(own.pack), pack_back=timed(own.pack_back))
    try:
        yield spent
    finally:
        del plan.look, plan.renew  # type: ignore[method-assign]
        for kernel, own in zip(kernels, kept, strict=True):
            kernel.ops = own


def share(plan: Plan, attack: Callable[[], Any], rounds: int = 3) -> dict[str, float]:
    """Seconds of the renewal in one attack and its share of that attack, the least of `rounds`."""
    found = []
    with watched(plan) as spent:
        for _ in range(rounds):
            spent.clear()
            begun = time.perf_counter()
            attack()
            whole = time.perf_counter() - begun
            found.append((sum(spent) / whole, sum(spent)))
    least = min(found)
    return {"share": least[0], "seconds": least[1]}
