"""APGD's GPU kernels and the noise's once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fastard import ops, reference_apgd, reference_noise

Result = Sequence[Tensor]
Run = Callable[[], tuple[Result, Result]]
# A sample in whole 16-byte groups and not; streamed by one block; by a cluster.
SIZES = ((8, 8), (5, 7), (68, 68), (112, 112))
EPS = {"Linf": 8 / 255, "L2": 0.5, "L1": 4.0}


def drawn(*shape: int, uniform: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.rand if uniform else torch.randn)(shape, generator=generator)


def step(norm: str, size: tuple[int, int], dtype: torch.dtype, device: str) -> Run:
    def run() -> tuple[Result, Result]:
        shape = (2, 3, *size)
        x, noise = drawn(*shape, uniform=True).to(dtype), drawn(*shape).to(dtype)
        near = [(x + 0.02 * noise.flip(k)).clamp(0, 1) for k in (0, 1)]
        eps = torch.tensor([1.0, 0.5], dtype=dtype) * EPS[norm]
        share = torch.tensor([0.1, 0.4], dtype=dtype)
        inputs = [*near, noise.flip(2), x, eps, 2 * eps]
        wanted = reference_apgd.apgd_step(*inputs, norm, 0.75, 0.0, 1.0, share)
        there = [t.clone().to(device) for t in inputs]
        used = share.to(device) if norm == "L1" else None
        ops.apgd_step_(*there, norm, share=used)
        left = near[1] if norm == "L1" else near[0]
        return there[:2], (wanted.double(), left.double())

    return run


def keep(sparse: bool, size: tuple[int, int], dtype: torch.dtype, device: str) -> Run:
    def run() -> tuple[Result, Result]:
        shape = (4, 3, *size)
        x, v = (drawn(*shape, uniform=True).to(dtype).flip(k) for k in (0, 1))
        loss = torch.tensor([1.0, -1.0, 2.0, 0.0], dtype=dtype)
        told = v, drawn(*shape).to(dtype), x, loss, loss < 1.5
        state = [x, torch.zeros_like(x), x, loss < 5, torch.full((9, 4), 0.5, dtype=dtype)]
        wanted = reference_apgd.apgd_keep(*told, *state, sparse, 3, 0.75)
        own = [t.clone().to(device) for t in state]
        ops.apgd_keep_(*(t.to(device) for t in told), *own, sparse=sparse, window=3)
        return [t.to(dtype) for t in own], [t.double() for t in wanted]

    return run


def noise(normal: bool, numbers: int, device: str) -> Run:
    def run() -> tuple[Result, Result]:
        ids, key = torch.tensor([0, 5, 2**32 - 1]), (2**63 + 1, 3, 5)
        wanted = reference_noise.counter_noise(ids, numbers, *key, normal)
        return (ops.counter_noise(ids.to(device), numbers, *key, normal),), (wanted.double(),)

    return run


def runs(device: str) -> Iterator[tuple[str, Run]]:
    """Every variant, by name."""
    dtypes = (torch.float32, torch.float64)
    for norm, size, dtype in itertools.product(EPS, SIZES, dtypes):
        yield f"apgd_step_ {norm} 3x{size[0]}x{size[1]} {dtype}", step(norm, size, dtype, device)
    for sparse, size, dtype in itertools.product((False, True), SIZES[:3], dtypes):
        name = f"apgd_keep_ {'L1' if sparse else 'Linf'} 3x{size[0]}x{size[1]} {dtype}"
        yield name, keep(sparse, size, dtype, device)
    for normal, numbers in itertools.product((False, True), (3072, 3)):
        name = f"counter_noise {'normal' if normal else 'uniform'} {numbers}"
        yield name, noise(normal, numbers, device)
