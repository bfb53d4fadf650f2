"""The four attacks of an AutoAttack, as its constructor makes them."""

from __future__ import annotations

from typing import Any

import torch

from fastard.autoattack.apgd import APGDAttack, APGDAttack_targeted
from fastard.autoattack.fab import FABAttack_PT
from fastard.autoattack.log import Logger
from fastard.autoattack.square import SquareAttack
from fastard.engine.unwrap import Model


def make_attacks(
    model: Model, norm: str, eps: float, seed: float | None, device: torch.device | None,
    logger: Logger, compat: str | None = None,
) -> tuple[Any, Any, Any, Any]:  # fmt: skip
    """apgd, apgd_targeted, fab and square with the settings of the official constructor."""
    common: dict[str, Any] = {
        "norm": norm, "eps": eps, "seed": seed, "verbose": False, "device": device,
    }  # fmt: skip
    gradient: dict[str, Any] = common | {
        "n_iter": 100, "eot_iter": 1, "rho": 0.75, "logger": logger, "compat": compat,
    }  # fmt: skip
    fab = FABAttack_PT(model, n_restarts=5, n_iter=100, **common)
    square = SquareAttack(
        model, p_init=0.8, n_queries=5000, n_restarts=1, resc_schedule=False, **common
    )
    fab.compat = square.compat = compat
    return (
        APGDAttack(model, n_restarts=5, **gradient),
        APGDAttack_targeted(model, n_restarts=1, **gradient),
        fab,
        square,
    )
