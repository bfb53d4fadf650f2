"""Square Attack's GPU kernels once: three norms, two losses, odd sizes, a network's own input."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fastard import ops, reference_square
from fastard.kinds import Norm

Result = Sequence[Tensor]
Run = Callable[[], tuple[Result, Result]]
EPS = {"Linf": 8 / 255, "L2": 0.5, "L1": 4.0}
SIDE = 5


def square(
    norm: str, size: tuple[int, int], classes: int, ce: bool, dtype: torch.dtype, device: str
) -> Run:
    """A query proposed, judged, and the next proposed, for five rows."""

    def run() -> tuple[Result, Result]:
        generator = torch.Generator().manual_seed(classes)
        x = torch.rand(5, 3, *size, generator=generator).to(dtype)
        eps = torch.full((1,), EPS[norm], dtype=dtype)
        draws = torch.rand(5, 2, reference_square.PLACES[norm] + 3, generator=generator)
        y = torch.arange(5)
        logits = torch.randn(5, classes, generator=generator)
        margin, loss = torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0]), torch.zeros(5)
        mean = std = heap = None
        if norm != "Linf":
            heap = reference_square.pyramid(SIDE, norm, torch.device("cpu"))
        elif ce:
            mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
        noise = torch.randn(x.shape, generator=generator).clamp(-1, 1).to(dtype)
        # Inside the ball, as iterates are.
        best = (x + (0.9 * EPS[norm] if norm == "Linf" else 0.01) * noise).clamp(0, 1)
        trial = best if mean is None else ops.prepared(best, mean, std)
        queries = torch.ones(5, dtype=torch.int64)
        state = [best, trial.clone(), x, eps, draws, y, margin, loss, queries]
        own = [t.clone().to(device) for t in state]
        wide = [t.double() if i < 4 else t for i, t in enumerate(state)]
        there = [None if t is None else t.to(device) for t in (logits, heap, mean, std)]
        for judged in (-1, 0):
            asked = None if judged < 0 else there[0]
            ops.square_step_(
                *own, Norm[norm], ce=ce, logits=asked, judged=judged, judged_side=SIDE,
                proposed=judged + 1, proposed_side=SIDE, pyramid=there[1], mean=there[2],
                std=there[3])  # fmt: skip
            found = reference_square.step(
                *wide, norm, ce, False, judged, SIDE, judged + 1, SIDE, 0.0, 1.0,
                None if judged < 0 else logits, heap, mean, std)  # fmt: skip
            for at, value in zip((0, 1, 6, 7, 8), found, strict=True):
                wide[at] = value
        return [own[at] for at in (0, 1, 6, 7)], [wide[at].double() for at in (0, 1, 6, 7)]

    return run


def runs(device: str) -> Iterator[tuple[str, Run]]:
    """Every variant, by name."""
    kinds = (torch.float32, torch.float64)
    sizes = ((8, 8), (9, 14), (40, 40))
    for norm, size, ce, dtype in itertools.product(EPS, sizes, (False, True), kinds):
        classes = 1000 if ce else 10
        name = f"square_step_ {norm} 3x{size[0]}x{size[1]} {'ce' if ce else 'margin'} {dtype}"
        yield name, square(norm, size, classes, ce, dtype, device)
