"""Where the time of one attack goes: convolutions, epilogues, step, loss, renewed weights, gaps."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

import fastard
from fastard import ops
from fastard.engine.convolve import OneDNN
from fastard.engine.plan import Plan
from fastard.engine.segment import SegmentStep
from fastard.engine.steps import ConvolutionStep, DepthwiseStep, LinearStep

from . import attack_contests, gpu_attack_floor, published, timing
from .attack_contests import BOUNDS, prepared
from .attack_floor import floor
from .case import Case
from .record import OURS, Agreement, Line
from .rivals import Absent

CONVOLUTIONS, EPILOGUES, RENEWED = "convolutions and products", "epilogues", "renewed weights"
PIECES, STEP, LOSS, START, GAPS = "autograd's pieces", "step", "loss", "start", "gaps"
# A GPU's kernels by their names, ours first: the first that fits.
KERNELS = (
    (STEP, r"linf_kernel|l1_kernel|l2_resident|l2_streamed"),
    (START, r"start_kernel|l2_start"),
    (LOSS, r"warp_rows|block_rows|distill_"),
    (RENEWED, r"fold_kernel"),
    (EPILOGUES, r"epilogue_kernel|backward_kernel|bits"),
    (CONVOLUTIONS, r"conv|gemm|xmma|cutlass|cudnn|dgrad|fprop|winograd|gemv|nchwToNhwc|nhwcToNchw"),
)


class Exclusive:
    """Seconds by part; what runs inside another part counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []

    def timed(self, part: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._inside.append(0.0)
            begun = time.perf_counter()
            try:
                return run(*arguments, **options)
            finally:
                took = time.perf_counter() - begun
                within = self._inside.pop()
                if self._inside:
                    self._inside[-1] += took
                self.seconds[part] = self.seconds.get(part, 0.0) + took - within

        return call


@contextmanager
def watched(plan: Plan) -> Iterator[Exclusive]:
    """Times every part of an attack on the CPU that runs `plan`."""
    clock = Exclusive()
    with ExitStack() as around:

        def watch(owner: Any, name: str, part: str) -> None:
            own = clock.timed(part, getattr(owner, name))
            around.enter_context(mock.patch.object(owner, name, own))

        for step in plan.steps:
            part = EPILOGUES
            if isinstance(step, (DepthwiseStep, LinearStep)):
                part = CONVOLUTIONS
            elif isinstance(step, SegmentStep):
                part = PIECES
            watch(step, "forward", part)
            watch(step, "backward", part)
            if isinstance(step, ConvolutionStep):
                watch(step.kernel, "forward", CONVOLUTIONS)
                watch(step.kernel, "backward", CONVOLUTIONS)
                if isinstance(step.kernel, OneDNN):
                    kept = step.kernel.ops
                    around.callback(setattr, step.kernel, "ops", kept)
                    step.kernel.ops = kept._replace(
                        pack=clock.timed(RENEWED, kept.pack),
                        pack_back=clock.timed(RENEWED, kept.pack_back))  # fmt: skip
        for name in ("look", "renew"):
            watch(plan, name, RENEWED)
        watch(ops, "pgd_step_", STEP)
        watch(ops, "logit_loss", LOSS)
        watch(ops, "random_start_", START)
        yield clock


def measure(case: Case) -> Iterator[Line]:
    """One line of fastard's: the round with the least seconds, part by part."""
    f = prepared(case)
    steps, (eps, alpha) = case.steps or 10, BOUNDS["Linf"]
    attack = fastard.PGD(
        f.net, "kl", eps=eps, alpha=alpha, steps=steps, precision=case.precision,
        noise_device="cpu")  # fmt: skip
    torch.manual_seed(1)
    x_adv = attack(f.x, f.logits)
    torch.manual_seed(1)
    wanted = attack_contests.reached(
        case, f, published.rslad(f.net, f.logits, f.x, alpha, eps, steps)
    )
    agreement: Agreement = attack_contests.judge(case, f, wanted)(OURS, x_adv)
    if not agreement.agreed:
        yield case.line(OURS, "disagrees", reason=f"{agreement.what} is {agreement.value:.3g}",
                        agreement=agreement)  # fmt: skip
        return
    with attack.program.running(f.x):
        plan = attack.program.plan
    if plan is None:
        raise Absent(f"the network has no plan: {attack.program.made}")
    parts, samples, watch = (on_gpu if case.device == "cuda" else on_cpu)(case, attack, plan, f)
    seconds = timing.summary(samples)
    why = timing.unstable(seconds, watch)
    limit = limit_of(case, plan, f, steps)
    yield case.line(
        OURS, version=fastard.__version__, seconds=seconds, stable=why is None, unstable=why,
        breakdown=parts, agreement=agreement, floor_seconds=limit,
        over_floor=seconds.min / limit)  # fmt: skip


def limit_of(case: Case, plan: Plan, f: attack_contests.Field, steps: int) -> float:
    """Seconds of the bare convolutions of all steps."""
    if case.device == "cuda":
        loops = gpu_attack_floor.replays(f.net, f.x, steps, [case.precision or "fp32"])
        samples, _ = timing.turns(loops, timing.by_events, rounds=5)
        return min(min(seconds) for seconds in samples.values())
    runs, _ = timing.turns({"floor": floor(plan, f.net, f.x)}, rounds=3)
    return steps * min(runs["floor"])


def on_cpu(
    case: Case, attack: Any, plan: Plan, f: attack_contests.Field
) -> tuple[dict[str, float], list[float], timing.Watch]:
    found: list[tuple[float, dict[str, float]]] = []
    with timing.Watch() as watch, watched(plan) as clock:
        for _ in range(case.rounds):
            clock.seconds.clear()
            took, _ = timing.by_host(lambda: attack(f.x, f.logits))
            found.append((took, dict(clock.seconds)))
    whole, parts = min(found, key=lambda pair: pair[0])
    parts[GAPS] = whole - sum(parts.values())
    return parts, [took for took, _ in found], watch


def on_gpu(
    case: Case, attack: Any, plan: Plan, f: attack_contests.Field
) -> tuple[dict[str, float], list[float], timing.Watch]:
    """The replayed graph's kernels, by their names, as the profiler times them."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
        attack(f.x, f.logits)
    with timing.Watch() as watch:
        samples, _ = timing.turns({OURS: lambda: attack(f.x, f.logits)}, timing.by_events,
                                  rounds=case.rounds)  # fmt: skip
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        attack(f.x, f.logits)
        torch.cuda.synchronize()
    kernels = [
        (event.key, event.self_device_time_total / 1e6) for event in profiler.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]  # fmt: skip
    parts = by_name(kernels)
    parts[GAPS] = max(0.0, min(samples[OURS]) - sum(parts.values()))
    return parts, samples[OURS], watch


def by_name(kernels: list[tuple[str, float]]) -> dict[str, float]:
    """Seconds of kernels by part; what no name fits is other elementwise work."""
    parts: dict[str, float] = {}
    for name, seconds in kernels:
        part = next((p for p, words in KERNELS if re.search(words, name)), "other kernels")
        parts[part] = parts.get(part, 0.0) + seconds
    return parts
