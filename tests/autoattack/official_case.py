"""A tiny network whose images fall to some attacks and not to others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.autoattack_case import Case

EPS = {"Linf": 0.02, "L2": 0.15, "L1": 1.0}


def tiny(classes: int = 5) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(128, classes)).eval()  # fmt: skip


def labelled(model: nn.Module, n: int) -> tuple[Tensor, Tensor]:
    """Images and the classes that the model gives them, but two, which it errs on."""
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    y[[3, 7]] = logits.argsort(1)[[3, 7], 1]
    return x, y


def tiny_case(norm: str = "Linf", n: int = 16) -> Case:
    model = tiny()
    return Case("tiny", norm, EPS[norm], model, *labelled(model, n), targets=2)
