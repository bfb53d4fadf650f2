"""Attacks that break what they are told to, so that the driver can be watched alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fastard.autoattack import driver


class Mean(nn.Module):
    """Classes by the first pixel, in ten steps of 0.1: class k at [k / 10, (k + 1) / 10)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.classes = classes
        self.scale = nn.Parameter(torch.tensor(50.0))

    def forward(self, x: Tensor) -> Tensor:
        centres = (torch.arange(self.classes) + 0.5) / self.classes
        return -self.scale * (x[:, 0, 0, :1] - centres) ** 2


def images(n: int = 10, classes: int = 10) -> tuple[Tensor, Tensor]:
    """n images of classes in turn, each in the middle of its class."""
    y = torch.arange(n) % classes
    x = torch.full((n, 3, 4, 4), 0.5)
    x[:, 0, 0, 0] = (y + 0.5) / classes
    return x, y


class Attack(SimpleNamespace):
    """Moves the first pixel of the ids in `breaks` by `by`, and notes what it was asked."""

    search: Any = None
    compat: Any = None

    def perturb(self, x: Tensor, y: Tensor, ids: Tensor | None = None) -> Tensor:
        settings = {k: v for k, v in vars(self).items() if k not in ("calls", "breaks")}
        self.calls.append(settings | {"ids": ids.tolist(), "y": y.tolist()})
        if self.search is not None:
            with self.search.running(x):
                self.search.logits(x)
        adv = x.clone()
        hit = torch.tensor([int(i) in self.breaks for i in ids])
        adv[hit, 0, 0, 0] += torch.where(y[hit] < 9, self.by, -self.by)
        return adv


def stand_in(monkeypatch, breaks: dict[str, set[int]] | None = None, by: float = 0.1):
    """Replaces the attacks that the driver makes; returns them by name."""
    names = ("apgd", "apgd_targeted", "fab", "square")
    settings = {
        "by": by, "seed": 0, "n_restarts": 5, "n_target_classes": 9, "use_largereps": False,
        "targeted": False, "loss": "ce", "n_queries": 5000, "eot_iter": 1, "n_iter": 100,
    }  # fmt: skip
    hits = breaks or {}
    attacks = {name: Attack(calls=[], breaks=hits.get(name, ()), **settings) for name in names}
    monkeypatch.setattr(driver, "make_attacks", lambda *a: tuple(attacks[n] for n in names))
    return attacks
