"""The module inside DataParallel, DistributedDataParallel and torch.compile's wrapper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

Model = Callable[..., Any]


def inner_model(model: Model) -> tuple[Model, list[str]]:
    """The innermost model and the names of the wrappers around it.

    An attack runs on the module inside: under DDP it needs no communication, and the hooks and
    buffer broadcasts of the wrapper stay out of its passes.
    """
    wrappers = []
    while isinstance(model, nn.Module):
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inside = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            inside = model._orig_mod
        else:
            break
        wrappers.append(type(model).__name__)
        model = inside
    return model, wrappers
