"""What an attack changes in a model while it runs, put back whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fastard.engine.unwrap import Model, modules_behind

MODES = ("eval", "train")
BN_STATS = ("update", "frozen")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def check_mode(mode: str, bn_stats: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be 'eval' or 'train', but is {mode!r}.")
    if bn_stats not in BN_STATS:
        raise ValueError(f"bn_stats must be 'update' or 'frozen', but is {bn_stats!r}.")


def _statistics(modules: list[nn.Module]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every normalisation layer's running statistics with their present values."""
    return [
        (buffer, buffer.clone())
        for module in modules
        for name in _STATISTICS
        if isinstance(buffer := getattr(module, name, None), torch.Tensor)
    ]


@contextmanager
def attack_mode(model: Model, mode: str = "eval", bn_stats: str = "update") -> Iterator[None]:
    """Runs a block with the model in `mode`; each module's own training flag returns afterwards.

    In "train" mode batch statistics are used and running statistics updated, as the codes of ARD,
    IAD, Rice and Madry do; bn_stats="frozen" puts the running statistics back, and so does an
    exception.
    """
    check_mode(mode, bn_stats)
    roots = modules_behind(model)
    modules = [module for root in roots for module in root.modules()]
    flags = [(module, module.training) for module in modules]
    kept = _statistics(modules) if mode == "train" else []
    restore = bn_stats == "frozen"
    try:
        if any(flag != (mode == "train") for _, flag in flags):
            for root in roots:
                root.train(mode == "train")
        yield
    except BaseException:
        restore = True
        raise
    finally:
        for module, flag in flags:
            module.training = flag
        if restore:
            with torch.no_grad():
                for buffer, value in kept:
                    buffer.copy_(value)
