"""What a plan should cost: its FLOPs and bytes, and the time in which this machine moves both."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from fastard.engine.layers import Constant, Convolution, Segment
from fastard.engine.plan import Plan
from fastard.engine.precision import tf32

# Large enough for full speed, small enough that asking takes a few milliseconds.
SIDES, COPIES = {"cpu": 512, "cuda": 4096}, {"cpu": 32 << 20, "cuda": 128 << 20}


class Cost(NamedTuple):
    """Of one image's forward and input gradient."""

    flops: float
    bytes: float


class Rates(NamedTuple):
    """What the device was seen to do: FLOP/s of a matrix product, bytes/s of a copy."""

    flops: float
    bytes: float


def cost(plan: Plan) -> Cost:
    """Convolutions and linear layers twice each, every layer's input and output once each way;
    pieces left to autograd are not counted."""
    flops = moved = 0.0
    for layer in plan.network.layers:
        if isinstance(layer, (Segment, Constant)):
            continue
        made = layer.output.meta["shape"]
        batch = made[0]
        if isinstance(layer, Convolution):
            shape = plan.shapes[id(layer)]
            flops += 2 * 2 * math.prod(made) / batch * math.prod(shape[1:])
        elements = [math.prod(v.meta["shape"]) for v in (*layer.inputs, layer.output)]
        moved += 2 * sum(elements) / batch * plan.dtype.itemsize
    return Cost(flops, moved)


def floor(work: Cost, rates: Rates) -> float:
    """Seconds below which one image's passes cannot fall, unless in a cache: an estimate."""
    return max(work.flops / rates.flops, work.bytes / rates.bytes)


def rates(plan: Plan, fast: bool | None) -> Rates:
    """The rates of the plan's device in its dtype; `fast` is whether TF32 is allowed."""
    return _rates(str(plan.device), plan.dtype, fast, torch.get_num_threads())


@functools.cache
def _rates(device: str, dtype: torch.dtype, fast: bool | None, threads: int) -> Rates:
    kind = torch.device(device).type
    side, size = SIDES[kind], COPIES[kind]
    a = torch.ones(side, side, dtype=dtype, device=device)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    with torch.no_grad(), torch.autocast(kind, enabled=False), tf32(fast):
        product = _least(lambda: torch.mm(a, a), kind)
    copy = _least(lambda: target.copy_(source), kind)
    return Rates(2 * side**3 / product, 2 * size / copy)


def _least(run: Callable[[], object], kind: str, rounds: int = 5) -> float:
    """Seconds of the fastest of some calls, after one to warm up."""
    found = math.inf
    for turn in range(rounds + 1):
        if kind == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        run()
        if kind == "cuda":
            torch.cuda.synchronize()
        if turn:
            found = min(found, time.perf_counter() - begun)
    return found
