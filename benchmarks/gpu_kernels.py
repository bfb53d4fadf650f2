"""The kernels on a GPU against a copy, eager PyTorch and torch.compile: agreement, then time.

A step of `make gpu-check`; alone: python -m benchmarks.gpu_kernels --record FILE.json. On a CPU
(--device cpu) it checks the agreement of every case at a small size and times nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastard import ops

from . import gpu_timing
from .gpu_case import Case, Outputs, Set, outputs
from .gpu_cases import CASES
from .gpu_figures import figures
from .gpu_record import put

KEY = "kernels"
Call = Callable[[Set], Outputs]


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Insists on one backend of fastard.ops, which chooses once and then remembers."""
    before = os.environ.get("FASTARD_BACKEND")
    os.environ["FASTARD_BACKEND"] = name
    ops.backend.cache_clear()
    try:
        yield
    finally:
        if before is None:
            del os.environ["FASTARD_BACKEND"]
        else:
            os.environ["FASTARD_BACKEND"] = before
        ops.backend.cache_clear()


def candidates(case: Case, device: str) -> tuple[dict[str, Call], dict[str, str]]:
    """Who is timed, and who is not for which reason."""

    def under(name: str) -> Call:
        def call(s: Set) -> Outputs:
            with backend(name):
                return case.fastard(s)

        return call

    # Off the GPU nothing is timed, and dynamo alone shows that the formula can be compiled.
    compiled = torch.compile(
        case.formula(), fullgraph=True, dynamic=False,
        backend="inductor" if device == "cuda" else "eager")  # fmt: skip
    chain = case.chain()
    found = {
        "native": under("native"),
        "eager": lambda s: outputs(chain(*case.arguments(s))),
        "compile": lambda s: outputs(compiled(*case.arguments(s))),
    }
    if device != "cuda":
        return found, {"triton": "its kernels run on GPUs"}
    if importlib.util.find_spec("triton") is None:
        return found, {"triton": "triton is not installed"}
    return {**found, "triton": under("triton")}, {}


def error(case: Case, result: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference, as a share of its output's largest value; NaN for a NaN."""
    worst = []
    for k, (got, wanted) in enumerate(zip(result, exact, strict=True)):
        got = got.detach().double()
        if k == 0 and case.scalar_loss:
            got, wanted = got.sum(), wanted.sum()
        worst.append((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
    return torch.stack(worst).max().item()


def agreement(
    case: Case, calls: dict[str, Call], s: Set
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Each candidate's error against fp64, and a sentence for each that disagrees or fails."""
    exact = case.exact(s)
    errors: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    for name, call in calls.items():
        allowed = case.allowed(rival=name in ("eager", "compile"))
        case.reset(s)
        try:
            off = error(case, call(s), exact)
        except Exception as failure:  # whatever a rival dies of belongs into the record
            failures[name] = f"{case.name}: {name} failed: {_first_line(failure)}"
            continue
        errors[name] = {"error": off, "allowed": allowed}
        if not off <= allowed:
            failures[name] = f"{case.name}: {name} is off by {off:.1e}, allowed {allowed:g}"
    return errors, failures


def _first_line(failure: Exception) -> str:
    lines = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {lines[0] if lines else ''}"[:500]


def replays_right(case: Case, call: Call, graph: gpu_timing.Graph, sets: list[Set]) -> bool:
    """Whether the graph leaves the first set as direct calls leave it: it may hold nothing."""
    for s in sets:
        case.reset(s)
    graph.graph.replay()
    torch.cuda.synchronize()
    seen = [t.clone() for t in graph.kept[0]]
    case.reset(sets[0])
    for _ in range(graph.calls // len(sets)):
        direct = call(sets[0])
    return all(
        torch.allclose(a.double(), b.double(), rtol=1e-2, atol=1e-5)
        for a, b in zip(seen, direct, strict=True)
    )


def timed(
    case: Case, calls: dict[str, Call], l2: int, device: str = "cuda"
) -> tuple[dict[str, Any], list[str]]:
    """Seconds of every candidate, a copy's and, where a target asks for it, an empty node's."""
    size = case.bytes()
    count = gpu_timing.sets_for(size, l2, case.resident)
    generator = torch.Generator(device).manual_seed(1)
    sets = [case.inputs(device, generator) for _ in range(count)]
    graphs: dict[str, gpu_timing.Graph] = {}
    failures = []
    for name, call in calls.items():
        try:
            graph = gpu_timing.captured(lambda k, call=call: call(sets[k]), size, count)
            right = replays_right(case, call, graph, sets)
        except Exception as failure:  # as above
            failures.append(f"{case.name}: {name} in a graph: {_first_line(failure)}")
            continue
        if right:
            graphs[name] = graph
        else:
            failures.append(f"{case.name}: {name} computes something else when replayed")
    graphs["copy"] = gpu_timing.captured(gpu_timing.copies(size, count, device), size, count)
    if "launch" in case.targets:
        graphs["empty"] = gpu_timing.captured(gpu_timing.smallest_kernels(device), 0, 1)

    def prepare() -> None:
        for s in sets:
            case.reset(s)

    seconds = gpu_timing.replayed(graphs, prepare)
    found = {
        **figures(case, seconds),
        "sets": count,
        "calls_a_replay": {name: graph.calls for name, graph in graphs.items()},
        "bytes_of_all_sets_over_l2": count * size / l2,
    }
    return found, failures


def run_case(case: Case, device: str, l2: int | None) -> dict[str, Any]:
    """Agreement, and time where `l2`, the cache's bytes, is given."""
    torch._dynamo.reset()  # else a second shape is compiled for any shape
    begun = time.perf_counter()
    s = case.inputs(device, torch.Generator(device).manual_seed(0))
    calls, unavailable = candidates(case, device)
    errors, failures = agreement(case, calls, s)
    found: dict[str, Any] = {"agreement": errors, "unavailable": unavailable}
    sentences = list(failures.values())
    if l2 is not None:
        del s
        right = {name: call for name, call in calls.items() if name not in failures}
        measured, more = timed(case, right, l2, device)
        found.update(measured)
        sentences += more
    return {**found, "failures": sentences, "took_seconds": time.perf_counter() - begun}


def small(case: Case) -> Case:
    """The case at a size for a CPU."""
    shape = (3, *case.shape[1:]) if len(case.shape) == 2 else (2, 3, 8, 8)
    return dataclasses.replace(case, shape=shape)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all cases that the time allows; 1 where something failed or disagreed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_kernels")
    parser.add_argument("--record", type=Path, required=True, help="JSON file to add to")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start none after")
    arguments = parser.parse_args(argv)
    begun = time.perf_counter()
    l2 = None
    if arguments.device == "cuda":
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
    left_out, failures = [case.name for case in CASES], 0
    # Until measured, every target stands there as not reached: a run may end at any time.
    for case in CASES:
        put(
            arguments.record,
            {"targets": figures(case, {})["targets"], "failures": []},
            KEY,
            "cases",
            case.name,
        )
    put(arguments.record, left_out, KEY, "left_out")
    for case in CASES:
        if time.perf_counter() - begun > arguments.seconds:
            continue
        found = run_case(case if arguments.device == "cuda" else small(case), arguments.device, l2)
        failures += len(found["failures"])
        put(arguments.record, found, KEY, "cases", case.name)
        left_out.remove(case.name)
        put(arguments.record, left_out, KEY, "left_out")
        print(f"{case.name}: {found['took_seconds']:.1f} s", *found["failures"], sep="\n  ")
        if l2 is not None:
            torch.cuda.empty_cache()
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
