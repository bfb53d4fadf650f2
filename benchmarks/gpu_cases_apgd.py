"""What `make gpu-check` times of Auto-PGD's own kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastard import ops, reference_apgd

from .gpu_case import Case, Chain, Outputs, Set

EPS = 8 / 255


def official_step(
    x_adv: Tensor, x_old: Tensor, grad: Tensor, x: Tensor, size: Tensor
) -> tuple[Tensor, Tensor]:
    """The official code's Linf step with momentum and its copy of the point that is left; size is
    [B, 1, 1, 1]."""
    moved = x_adv + size * torch.sign(grad)
    moved = torch.clamp(torch.min(torch.max(moved, x - EPS), x + EPS), 0.0, 1.0)
    mixed = x_adv + (moved - x_adv) * 0.75 + (x_adv - x_old) * 0.25
    return torch.clamp(torch.min(torch.max(mixed, x - EPS), x + EPS), 0.0, 1.0), x_adv.clone()


@dataclass(frozen=True)
class ApgdStepCase(Case):
    """`apgd_step_` Linf in fp32, each sample with its own step size."""

    reads = ("x_adv", "x_old", "grad", "x", "column")

    @property
    def name(self) -> str:
        return f"apgd_step_ Linf {self.size}"

    def bytes(self) -> int:
        """16 read + 8 written an element, and a step size a sample."""
        return 24 * math.prod(self.shape) + 4 * self.shape[0]

    def inputs(self, device: str, generator: torch.Generator) -> Set:
        x, grad, a, b = (
            torch.rand(self.shape, device=device, generator=generator) for _ in range(4)
        )
        v, old = ((x + (2 * t - 1) * EPS).clamp(0, 1) for t in (a, b))
        size = torch.full((len(x),), 2 * EPS, device=device)
        return {
            "x": x, "grad": grad - 0.5, "x_adv": v, "x_old": old, "own": v.clone(),
            "own_old": old.clone(), "eps": torch.full((1,), EPS, device=device), "size": size,
            "column": size.view(-1, *[1] * (x.dim() - 1)),
        }  # fmt: skip

    def reset(self, s: Set) -> None:
        s["own"].copy_(s["x_adv"])
        s["own_old"].copy_(s["x_old"])

    def fastard(self, s: Set) -> Outputs:
        names = ("own", "own_old", "grad", "x", "eps", "size")
        return ops.apgd_step_(*(s[name] for name in names)), s["own_old"]

    def chain(self) -> Chain:
        return official_step

    def exact(self, s: Set) -> Outputs:
        names = ("x_adv", "x_old", "grad", "x", "eps", "size")
        wide = [s[name].double() for name in names]
        moved = reference_apgd.apgd_step(*wide, "Linf", 0.75, 0.0, 1.0)  # type: ignore[arg-type]
        return moved, wide[0]
