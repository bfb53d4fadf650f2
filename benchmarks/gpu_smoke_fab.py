"""FAB's GPU kernel once in each of its variants."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fastard import ops, reference_fab

Result = Sequence[Tensor]
Run = Callable[[], tuple[Result, Result]]
# In registers, in a block's part and whole; read again, by a cluster where there is one.
SIZES = ((5, 7), (32, 32), (80, 80))
SETTING = (5, -1.0, 0.1, 1.05, 0.9, 0.0, 1.0)


def step(norm: str, size: tuple[int, int], dtype: torch.dtype, device: str) -> Run:
    """Three samples: one starts, one steps, one was fooled; then the last without gradients."""

    def run() -> tuple[Result, Result]:
        generator = torch.Generator().manual_seed(sum(size))
        at, x = torch.rand(2, 3, 3, *size, generator=generator).to(dtype)
        grad = torch.randn(3, 3, *size, generator=generator).to(dtype) * 0.01
        gap = -0.01 * grad.abs().flatten(1).sum(1)
        begun = [torch.full((3,), 1e10, dtype=dtype), torch.tensor([0, 1, 2], dtype=torch.int32),
                 torch.tensor([False, True, True])]  # fmt: skip
        fooled = torch.tensor([True, False, True])

        def outcome(given: Sequence[Tensor], call: Callable[..., object]) -> list[Tensor]:
            call(*given, norm, *SETTING)
            alone = [t.clone() for t in given[:5]]
            alone[4].fill_(True)
            call(*alone, given[5], None, None, given[8], norm, *SETTING)
            return [t for t in (*given[:5], *alone) if t.is_floating_point()]

        def plain(*given: object) -> None:
            state = given[:5]
            for t, value in zip(state, reference_fab.iteration(*given), strict=True):  # type: ignore[arg-type]
                t.copy_(value)  # type: ignore[attr-defined]

        given = [at, x.clone(), *begun, x, grad, gap, fooled]
        wide = [t.clone().double() if t.is_floating_point() else t.clone() for t in given]
        wanted = outcome(wide, plain)
        return outcome([t.to(device) for t in given], ops.fab_step_), wanted

    return run


def runs(device: str) -> Iterator[tuple[str, Run]]:
    """Every variant, by name."""
    for norm, size in itertools.product(("Linf", "L2", "L1"), SIZES):
        for dtype in (torch.float32, torch.float64):
            name = f"fab_step_ {norm} 3x{size[0]}x{size[1]} {dtype}"
            yield name, step(norm, size, dtype, device)
