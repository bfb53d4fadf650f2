"""Square Attack's L2 proposal, as the GPU benchmark sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastard import ops, reference_square
from fastard.kinds import Norm

from .gpu_case import Case, Chain, Outputs, Set

EPS, SIDE, NUMBERS = 0.5, 7, 8


def proposal(best: Tensor, x: Tensor, draws: Tensor, heap: Tensor) -> Tensor:
    delta = reference_square.displacement(best, x, EPS, draws[:, 0], heap, "L2")
    return reference_square.on_sphere(delta, x, EPS)


@dataclass(frozen=True)
class SquareCase(Case):
    """`square_step_` in fp32 that writes a proposal for every row and judges none."""

    reads = ("best", "x", "draws", "heap")

    @property
    def name(self) -> str:
        return f"square_step_ L2 {self.size}"

    def bytes(self) -> int:
        """8 read + 4 written an element, a row's numbers, the pyramid."""
        return 12 * math.prod(self.shape) + 4 * NUMBERS * self.shape[0] + 4 * SIDE**2

    def inputs(self, device: str, generator: torch.Generator) -> Set:
        x, offset = (torch.rand(self.shape, device=device, generator=generator) for _ in range(2))
        best = reference_square.on_sphere(offset - 0.5, x, EPS)
        rows = self.shape[0]
        return {
            "best": best, "x": x, "own": torch.empty_like(x),
            "draws": torch.rand(rows, 1, NUMBERS, device=device, generator=generator),
            "heap": reference_square.pyramid(SIDE, "L2", torch.device("cpu")).to(device),
            "eps": torch.full((1,), EPS, device=device),
            "labels": torch.zeros(rows, dtype=torch.int64, device=device),
            "margin": torch.ones(rows, device=device), "loss": torch.ones(rows, device=device),
            "queries": torch.zeros(rows, dtype=torch.int64, device=device),
        }  # fmt: skip

    def reset(self, s: Set) -> None:
        s["own"].fill_(float("nan"))

    def fastard(self, s: Set) -> Outputs:
        ops.square_step_(
            s["best"], s["own"], s["x"], s["eps"], s["draws"], s["labels"], s["margin"], s["loss"],
            s["queries"], Norm.L2, proposed=0, proposed_side=SIDE, pyramid=s["heap"])  # fmt: skip
        return (s["own"],)

    def chain(self) -> Chain:
        return proposal

    def exact(self, s: Set) -> Outputs:
        return (proposal(s["best"].double(), s["x"].double(), s["draws"], s["heap"]),)
