"""Writes in place: a program computes every value anew, which is right unless someone reads what
was overwritten."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from torch import fx, nn

# Modules that may hand back their input or a view of it.
_PASSING = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle,
    nn.modules.dropout._DropoutNd, nn.Fold, nn.Unfold,
)  # fmt: skip
# What always makes a tensor of its own.
_FRESH = {
    "add", "sub", "mul", "truediv", "div", "floordiv", "pow", "neg", "abs", "exp", "log", "sqrt",
    "rsqrt", "reciprocal", "sum", "mean", "var", "std", "amax", "amin", "max", "min", "matmul",
    "bmm", "mm", "addmm", "einsum", "cat", "concat", "stack", "clone", "conv1d", "conv2d",
    "conv3d", "conv_transpose2d", "linear", "batch_norm", "layer_norm", "group_norm",
    "instance_norm", "relu", "relu6", "silu", "gelu", "hardswish", "hardsigmoid", "hardtanh",
    "leaky_relu", "elu", "celu", "selu", "mish", "softplus", "sigmoid", "tanh", "softmax",
    "log_softmax", "clamp", "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "_max_pool2d", "boolean_dispatch", "fn", "interpolate", "pad",
    "scaled_dot_product_attention", "where", "sin", "cos", "normalize", "zeros_like", "ones_like",
    "rand_like", "randn_like", "empty_like", "full_like",
}  # fmt: skip


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def written(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """The value that a node changes in place, if it does."""
    changes, name = node.kwargs.get("inplace") is True, _name(node)
    if node.op == "call_function":
        changes |= name.endswith("_") and not name.startswith("_")
        changes |= name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow",
                            "iand", "ior", "ixor", "setitem")  # fmt: skip
        # F.relu(x, True)
        changes |= len(node.args) > 1 and node.args[-1] is True and "elu" in name
        changes |= isinstance(node.kwargs.get("out"), fx.Node)
    elif node.op == "call_method":
        changes |= name.endswith("_") and not name.endswith("__")
    elif node.op == "call_module":
        changes |= getattr(modules[str(node.target)], "inplace", False) is True
    first = node.kwargs.get("out") or (node.args[0] if node.args else None)
    return first if changes and isinstance(first, fx.Node) else None


def _fresh(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the node's value surely shares no memory with what it reads."""
    if written(node, modules) is not None:
        return False
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module).__module__.startswith("torch.nn") and not isinstance(module, _PASSING)
    return node.op in ("call_function", "call_method") and _name(node) in _FRESH


def refusal(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> str | None:
    """Why the graph's writes in place cannot be done without, if they cannot."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        target = written(node, modules)
        if target is None:
            continue
        if node.target is operator.setitem:
            return "its forward assigns into a tensor"
        family, grown = {target}, [target]
        while grown:
            member = grown.pop()
            near = [u for u in member.users if not _fresh(u, modules) and order[u] < order[node]]
            if not _fresh(member, modules):
                near += member.all_input_nodes
            for other in near:
                if other not in family:
                    family.add(other)
                    grown.append(other)
        for member in family:
            if member.op == "get_attr":
                return f"{node.name} writes into a parameter or buffer"
            if any(order[user] > order[node] for user in member.users):
                return f"{node.name} overwrites a value that is read again later"
    return None
