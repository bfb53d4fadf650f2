"""The module inside DataParallel, DistributedDataParallel and torch.compile's wrapper."""

from __future__ import annotations

import contextlib
import functools
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
    owner = getattr(model, "__self__", None)
    if isinstance(owner, nn.Module) and getattr(model, "__name__", "") in ("forward", "__call__"):
        model = owner
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


def modules_behind(model: Model) -> list[nn.Module]:
    """The modules that a model runs: itself, or those a function, partial or object holds.

    A lambda's networks are those of its closure and the globals it names; what it reaches in other
    ways is not seen, and keeps the mode it has.
    """
    if isinstance(model, nn.Module):
        return [model]
    if isinstance(model, functools.partial):
        held = [model.func, *model.args, *model.keywords.values()]
        return [m for part in held if callable(part) for m in modules_behind(part)]
    found: list[Any] = [getattr(model, "__self__", None)]
    for cell in getattr(model, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # a cell that is not filled yet holds nothing
            found.append(cell.cell_contents)
    code = getattr(model, "__code__", None)
    if code is not None:
        names = getattr(model, "__globals__", {})
        found += [names.get(name) for name in code.co_names]
    else:
        found += list(getattr(model, "__dict__", {}).values())
    return [part for part in found if isinstance(part, nn.Module)]


def made_in_inference(model: nn.Module) -> bool:
    """Whether the model holds tensors that autograd may not save."""
    return any(t.is_inference() for t in (*model.parameters(), *model.buffers()))
