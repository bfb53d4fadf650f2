"""A model as a torch.fx graph, with what cannot be traced kept as leaves, and the reasons."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


class Untraceable(Exception):
    """Why a model runs in eager autograd as a whole."""


@dataclass
class Traced:
    """A graph over the model's modules, and why some of them are leaves."""

    graph: fx.Graph
    leaves: dict[str, str] = field(default_factory=dict)


def hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward."""
    return any(getattr(module, name, None) for name in HOOKS)


class _Tracer(fx.Tracer):
    """Remembers in which module tracing failed, and refuses what a graph would get wrong."""

    def __init__(self, leaves: dict[str, str]) -> None:
        super().__init__()
        self.leaves, self.path = leaves, [""]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            module_qualified_name in self.leaves
            or hooked(m)
            or isinstance(m, torch.jit.ScriptModule)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.path.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        # After a failure the path stays: it names the innermost module that failed.
        self.path.pop()
        return result

    def create_node(self, kind: str, target: Any, *rest: Any, **named: Any) -> fx.Node:
        if kind.startswith("call") and not torch.is_grad_enabled():
            raise Untraceable("part of its forward runs under torch.no_grad")
        return super().create_node(kind, target, *rest, **named)


@contextmanager
def _no_custom_functions() -> Iterator[None]:
    """An autograd.Function traced through would lose its own backward."""
    kept = torch.autograd.Function.__dict__["apply"]

    def refuse(cls: type, *_args: Any, **_kwargs: Any) -> Any:
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
    if hooked(model) or any(
        getattr(nn.modules.module, f"_global{name}", None) for name in HOOKS[:3]
    ):
        raise Untraceable("it has hooks on the whole model")
    leaves: dict[str, str] = {}
    while True:
        tracer = _Tracer(leaves)
        try:
            with torch.enable_grad(), _no_custom_functions():
                graph = tracer.trace(model)
        except Untraceable:
            raise
        except Exception as error:  # whatever a forward raises on a proxy
            failed, why = tracer.path[-1], f"{type(error).__name__}: {first_line(error)}"
            if not failed or failed in leaves:
                raise Untraceable(f"its forward could not be traced ({why})") from error
            leaves[failed] = why
            continue
        named = dict(model.named_modules())
        for node in graph.nodes:
            if node.op == "call_module" and hooked(named[node.target]):
                leaves[node.target] = "it has hooks"
        _refuse_shared_writes(graph, named)
        return Traced(graph, leaves)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]


_VIEWS = {
    "view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "expand",
    "contiguous", "narrow", "chunk", "split", "unbind", "select", "t", "view_as", "detach",
}  # fmt: skip


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _VIEWS
    if node.op == "call_function":
        return node.target is operator.getitem or getattr(node.target, "__name__", "") in _VIEWS
    return False


def written(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """The value that a node changes in place, if it does."""
    name = getattr(node.target, "__name__", "")
    changes = node.kwargs.get("inplace") is True
    if node.op == "call_function":
        in_place = name.endswith("_") and not name.startswith("_")
        changes |= in_place or name in ("iadd", "isub", "imul", "itruediv", "setitem")
        # F.relu(x, True)
        changes |= len(node.args) > 1 and node.args[-1] is True and "relu" in name
    elif node.op == "call_method":
        target = str(node.target)
        changes |= target.endswith("_") and not target.endswith("__")
    elif node.op == "call_module":
        changes |= getattr(modules[str(node.target)], "inplace", False) is True
    first = node.args[0] if node.args else None
    return first if changes and isinstance(first, fx.Node) else None


def _refuse_shared_writes(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """The program computes every value anew: right unless someone reads what was overwritten."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        target = written(node, modules)
        if target is None:
            continue
        if getattr(node.target, "__name__", "") == "setitem":
            raise Untraceable("its forward assigns into a tensor")
        family, grown = {target}, True
        while grown:
            grown = False
            for member in list(family):
                near = [u for u in member.users if _is_view(u)]
                if _is_view(member):
                    near += member.all_input_nodes[:1]
                for other in near:
                    if other is not node and other not in family:
                        family.add(other)
                        grown = True
        for member in family:
            if any(order[user] > order[node] for user in member.users):
                raise Untraceable(f"{node.name} overwrites a value that is read again later")
