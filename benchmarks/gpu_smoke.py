"""Every GPU kernel once, in each of its variants, at small sizes: what compute-sanitizer watches.

Inputs are made, and results checked, on the CPU, so that few kernels but fastard's are launched.
Alone: python -m benchmarks.gpu_smoke [--device cpu] [--backends native,triton]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fastard import ops, reference

from . import gpu_smoke_apgd, gpu_smoke_fab, gpu_smoke_layers, gpu_smoke_square
from .gpu_kernels import backend

BOUNDS = {"Linf": (8 / 255, 2 / 255), "L2": (0.5, 0.2), "L1": (4.0, 2.0)}
# The sample in whole 16-byte groups and not; where `pgd_l2.cu` and `pgd_l1.cu` change their place:
# registers; streamed by one block (68x68); a cluster, shared memory (80, 112); read again (288).
SIZES = {
    "Linf": ((8, 8), (5, 7)),
    "L2": ((8, 8), (5, 7), (68, 68), (80, 80), (112, 112)),
    "L1": ((8, 8), (5, 7), (80, 80), (112, 112), (288, 288)),
}
DTYPES = (torch.float32, torch.bfloat16)
# A warp a row: 1, 8 and 32 classes a lane; then a block a row, in groups of four and not.
CLASSES = (10, 100, 1000, 1030, 1032)
KINDS = ("kl", "ce", "mixture", "margin", "dlr")
Result = Sequence[Tensor]
Run = Callable[[], tuple[Result, Result]]


def drawn(*shape: int, uniform: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.rand if uniform else torch.randn)(shape, generator=generator)


def step(norm: str, size: tuple[int, int], dtype: torch.dtype, fed: bool, device: str) -> Run:
    def run() -> tuple[Result, Result]:
        shape, (eps, alpha) = (2, 3, *size), BOUNDS[norm]
        x = drawn(*shape, uniform=True).to(dtype)
        x_adv = (x + 0.02 * drawn(*shape).flip(0)).clamp(0, 1).to(dtype)
        grad = drawn(*shape).flip(1).to(dtype)
        radii = torch.tensor([eps, eps / 2])
        mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
        moved = reference.pgd_step(
            x_adv.double(), grad.double(), x.double(), radii.double(), alpha, norm
        )
        there = [t.to(device) for t in (x_adv, grad, x, radii)]
        if not fed:
            return (ops.pgd_step_(*there, alpha, norm),), (moved,)
        feed = torch.full(shape, float("nan"), dtype=torch.bfloat16).to(device)
        own = ops.pgd_step_(
            *there, alpha, norm, feed=feed, mean=mean.to(device), std=std.to(device)
        )
        return (own, feed), (moved, reference.feed(moved, torch.float64, mean, std))

    return run


def start(kind: str, norm: str, size: tuple[int, int], dtype: torch.dtype, device: str) -> Run:
    def run() -> tuple[Result, Result]:
        shape, eps = (2, 3, *size), BOUNDS[norm][0]
        x = drawn(*shape, uniform=True).to(dtype)
        noise = drawn(*shape, uniform=kind == "uniform" and norm == "Linf").flip(0)
        radius = torch.tensor([0.3, 0.9])
        wanted = reference.random_start(
            x.double(), noise.double(), eps, kind, norm, radius.double()
        )
        own = torch.full_like(x, float("nan")).to(device)
        there = (t.to(device) for t in (x, noise))
        return (ops.random_start_(own, *there, eps, kind, norm, radius=radius.to(device)),), (
            wanted,
        )

    return run


def loss(kind: str, targeted: bool, classes: int, dtype: torch.dtype, device: str) -> Run:
    def run() -> tuple[Result, Result]:
        z, t = ((3 * drawn(5, classes).flip(k)).to(dtype) for k in (0, 1))
        labels, goals = torch.arange(5), torch.arange(5) + 5
        soft, aimed = kind in ("kl", "mixture"), kind == "dlr" and targeted
        wanted = reference.logit_loss(
            z.double(),
            t.double() if soft else None,
            kind,
            labels,
            goals if aimed else None,
            targeted,
        )
        target = t if soft else (goals if aimed else labels)
        named = labels.to(device) if aimed or kind == "mixture" else None
        both = kind == "kl"
        got = ops.logit_loss(
            z.to(device),
            target.to(device),
            kind,
            labels=named,
            targeted=targeted,
            teacher_grad=both,
        )
        return got, [w for w in wanted if w is not None][: 3 if both else 2]

    return run


def distill(reduction: str, classes: int, dtype: torch.dtype, device: str) -> Run:
    def run() -> tuple[Result, Result]:
        z, t = ((3 * drawn(5, classes).flip(k)).to(dtype) for k in (0, 1))
        rows, ds, dt = reference.distill_kl(z.double(), t.double(), 2.0, 1e-5)
        there = [v.to(device).requires_grad_() for v in (z, t)]
        value = ops.distill_kl(*there, 2.0, reduction, log_floor=1e-5)
        if reduction == "none":
            upstream = torch.ones(5, dtype=value.dtype).to(device)
            return (value, *torch.autograd.grad(value, there, upstream)), (rows, ds, dt)
        got = (value, *torch.autograd.grad(value, there))
        return got, (rows.sum() / 5, ds / 5, dt / 5)

    return run


def runs(device: str) -> Iterator[tuple[str, Run]]:
    """Every variant, by name."""
    for norm, sizes in SIZES.items():
        for size, dtype, fed in itertools.product(sizes, DTYPES, (False, True)):
            name = f"pgd_step_ {norm} 3x{size[0]}x{size[1]} {dtype}{' feed' if fed else ''}"
            yield name, step(norm, size, dtype, fed, device)
    for norm, sizes in SIZES.items():
        for size, dtype in itertools.product(sizes, DTYPES):
            name = f"random_start_ uniform {norm} 3x{size[0]}x{size[1]} {dtype}"
            yield name, start("uniform", norm, size, dtype, device)
    for size, dtype in itertools.product(SIZES["Linf"], DTYPES):
        name = f"random_start_ gaussian 3x{size[0]}x{size[1]} {dtype}"
        yield name, start("gaussian", "Linf", size, dtype, device)
    for kind, targeted, classes, dtype in itertools.product(KINDS, (False, True), CLASSES, DTYPES):
        name = f"logit_loss {kind}{' targeted' if targeted else ''} [5, {classes}] {dtype}"
        yield name, loss(kind, targeted, classes, dtype, device)
    for reduction, classes, dtype in itertools.product(("none", "batchmean"), CLASSES, DTYPES):
        yield (
            f"distill_kl {reduction} [5, {classes}] {dtype}",
            distill(reduction, classes, dtype, device),
        )
    yield from gpu_smoke_layers.runs(device)
    yield from gpu_smoke_square.runs(device)
    yield from gpu_smoke_fab.runs(device)
    yield from gpu_smoke_apgd.runs(device)


def kernel_of(name: str) -> str:
    """What a variant has in common with those of other dtypes and outputs."""
    return name.partition(" torch.")[0]


def in_order(device: str) -> list[tuple[bool, str, Run]]:
    """All variants, the first of each kernel before the second of any, and whether it is first."""
    seen: dict[str, int] = {}
    ranked = []
    for name, run in runs(device):
        rank = seen[kernel_of(name)] = seen.get(kernel_of(name), -1) + 1
        ranked.append((rank, name, run))
    ranked.sort(key=lambda entry: entry[0])
    return [(rank == 0, name, run) for rank, name, run in ranked]


def fault(run: Run) -> str | None:
    """What is wrong with one result, or None."""
    try:
        got, wanted = run()
    except Exception as failure:  # whatever an op dies of is what this program is to say
        return f"{type(failure).__name__}: {failure}"
    for out, exact in zip(got, wanted, strict=True):
        out = out.detach().cpu()
        allowed = 2e-5 if out.dtype == torch.float32 else 2e-2
        scale = exact.abs().max().clamp(min=1e-30)
        error = ((out.double() - exact).abs().max() / scale).item()
        if not error <= allowed:
            return f"off by {error:.1e}, allowed {allowed:g}"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs everything under each backend; 1 where anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_smoke")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--backends", default="native", help="of fastard.ops, by commas")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start none after")
    arguments = parser.parse_args(argv)
    begun = time.perf_counter()
    count = wrong = unmet = left_out = 0
    for name in arguments.backends.split(","):
        with backend(name):
            for first, case, run in in_order(arguments.device):
                # Ended by itself, so that a sanitizer around it still says what it saw.
                if time.perf_counter() - begun > arguments.seconds:
                    left_out += 1
                    if first and name == "native":
                        unmet += 1
                        print(f"WRONG {name}: {case}: left out, and no other of its kernel ran")
                    continue
                count += 1
                if found := fault(run):
                    wrong += 1
                    print(f"WRONG {name}: {case}: {found}", flush=True)
    print(f"gpu_smoke: {count - wrong} of {count} right, {left_out} left out", flush=True)
    return 1 if wrong or unmet else 0


if __name__ == "__main__":
    raise SystemExit(main())
