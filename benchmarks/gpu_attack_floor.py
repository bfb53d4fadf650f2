"""The floor of an attack on a GPU: the bare convolutions and products, replayed from one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastard.engine import Program
from fastard.engine.precision import resolve, tf32

from .attack_floor import floor


def replays(
    model: nn.Module, x: Tensor, steps: int, precisions: Sequence[str]
) -> dict[str, Callable[[], Any]]:
    """ "floor PRECISION": as many replays as the attack has steps. cuDNN chooses by measuring."""
    found: dict[str, Callable[[], Any]] = {}
    chosen = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        for precision in precisions:
            program = Program(model, precision)
            with program.running(x):
                plan = program.plan
            if plan is None:
                raise RuntimeError(f"the network in {precision} has no plan: {program.made}")
            with tf32(resolve(precision, "cuda").tf32):
                graph = captured(floor(plan, model, x))
            found[f"floor {precision}"] = lambda g=graph: [g.replay() for _ in range(steps)]
    finally:
        torch.backends.cudnn.benchmark = chosen
    return found


def captured(run: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph
