"""A model as a torch.fx graph, with what cannot be traced kept as leaves, and the reasons."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fastard.engine.aliases import refusal
from fastard.engine.fingerprint import globally_hooked, hooked


class Untraceable(Exception):
    """Why a model runs in eager autograd as a whole; `final`: for as long as it lives."""

    def __init__(self, reason: str, final: bool = True) -> None:
        super().__init__(reason)
        self.final = final


@dataclass
class Traced:
    """A graph over the model's modules, and why some of them are leaves."""

    graph: fx.Graph
    leaves: dict[str, str] = field(default_factory=dict)


class _Tracer(fx.Tracer):
    """Remembers in which module tracing failed, and refuses what a graph would get wrong."""

    # Buffers change as parameters do: they are looked up, not computed with.
    proxy_buffer_attributes = True

    def __init__(self, model: nn.Module, leaves: dict[str, str]) -> None:
        super().__init__()
        self.leaves, self.inside = leaves, [""]
        self._owned = {id(t) for t in (*model.parameters(), *model.buffers())}
        # fx patches nn.Module for the whole process: other threads pass through.
        self._thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            module_qualified_name in self.leaves
            or hooked(m)
            or isinstance(m, torch.jit.ScriptModule)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        self.inside.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        # After a failure the path stays: it names the innermost module that failed.
        self.inside.pop()
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor) and id(a) not in self._owned:
            raise TypeError("its forward uses a tensor that is no parameter or buffer")
        return super().create_arg(a)

    def create_node(self, kind: str, target: Any, *rest: Any, **named: Any) -> fx.Node:
        if kind.startswith("call") and not torch.is_grad_enabled():
            raise Untraceable("part of its forward runs under torch.no_grad")
        return super().create_node(kind, target, *rest, **named)


@contextmanager
def _no_custom_functions() -> Iterator[None]:
    """An autograd.Function traced through would lose its own backward."""
    kept, thread = torch.autograd.Function.__dict__["apply"], threading.get_ident()

    def refuse(cls: type, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return kept.__get__(None, cls)(*args, **kwargs)
        raise TypeError(f"the autograd.Function {cls.__name__} is not traced")

    torch.autograd.Function.apply = classmethod(refuse)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = kept  # type: ignore[method-assign]


def trace(model: nn.Module) -> Traced:
    """The graph of an eval-mode model; a module that cannot be traced is called as it is.

    Raises:
        Untraceable: the model as a whole must run in eager autograd.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise Untraceable("a scripted module has no Python forward to trace")
    if hooked(model) or globally_hooked():
        raise Untraceable("it has hooks on the whole model", final=False)
    leaves: dict[str, str] = {}
    while True:
        tracer = _Tracer(model, leaves)
        try:
            with torch.enable_grad(), _no_custom_functions():
                graph = tracer.trace(model, _defaults(model))
        except Untraceable:
            raise
        except Exception as error:  # whatever a forward raises on a proxy
            failed, why = tracer.inside[-1], f"{type(error).__name__}: {first_line(error)}"
            if not failed or failed in leaves:
                raise Untraceable(f"its forward could not be traced ({why})") from error
            leaves[failed] = why
            continue
        named = dict(model.named_modules())
        for node in graph.nodes:
            if node.op == "call_module" and hooked(named[node.target]):
                leaves[node.target] = "it has hooks"
        why_not = refusal(graph, named)
        if why_not is not None:
            raise Untraceable(why_not)
        return Traced(graph, leaves)


def _defaults(model: nn.Module) -> dict[str, Any] | None:
    """Every argument but the images at its default."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None
    rest = list(signature.parameters.values())[1:]
    given = {p.name: p.default for p in rest if p.default is not p.empty}
    return given or None


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]
