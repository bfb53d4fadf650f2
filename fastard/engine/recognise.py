"""Which layer a graph's node is: convolution, normalisation, activation, sum, or none of these."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastard.engine.layers import Convolution, Norm, Param, plain

Modules = Mapping[str, nn.Module]

_DROPPED = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)  # fmt: skip
_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "stochastic_depth"}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_ACTS: dict[Any, str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu", nn.Hardswish: "hardswish",
    F.relu: "relu", torch.relu: "relu", F.relu_: "relu", torch.relu_: "relu", F.relu6: "relu6",
    F.silu: "silu", F.hardswish: "hardswish", "relu": "relu", "relu_": "relu",
}  # fmt: skip
_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_SUBTRACTIONS = (operator.sub, operator.isub, torch.sub, "sub", "sub_")
_DIVISIONS = (operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "div_")


def shape(node: Any) -> tuple[int, ...] | None:
    """The example's shape where the value is a floating tensor."""
    return node.meta.get("shape") if isinstance(node, fx.Node) else None


def module_of(node: fx.Node, modules: Modules) -> nn.Module | None:
    """The module that the node calls, unless it must be called as it is."""
    if node.op != "call_module" or node.meta.get("opaque"):
        return None
    return modules[str(node.target)]


def dropped(node: fx.Node, modules: Modules) -> bool:
    """Whether the node does nothing in eval mode."""
    module = module_of(node, modules)
    if module is not None:
        return not module.training and any(plain(module, kind) for kind in _DROPPED)
    if node.op == "call_function" and getattr(node.target, "__name__", "") in _DROPOUTS:
        at = 3 if getattr(node.target, "__name__", "") == "stochastic_depth" else 2
        training = node.kwargs.get("training", node.args[at] if len(node.args) > at else True)
        return training is False
    return False


def param_of(node: Any) -> Param | None:
    """The parameter or buffer that a node looks up, if it does."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    path, _, attribute = str(node.target).rpartition(".")
    return Param(path, attribute)


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    listed = isinstance(value, (tuple, list)) and len(value) in (1, 2)
    if listed and all(isinstance(v, int) for v in value):
        return int(value[0]), int(value[-1])
    return None


def convolution(node: fx.Node, modules: Modules) -> Convolution | None:
    """A 2-d convolution with zero padding, or a linear layer, over the model's own weight."""
    module, x = module_of(node, modules), node.args[0] if node.args else None
    if not isinstance(x, fx.Node) or shape(x) is None or shape(node) is None:
        return None
    if module is not None:
        if len(node.args) != 1 or node.kwargs:
            return None
        path = str(node.target)
        bias = Param(path, "bias") if getattr(module, "bias", None) is not None else None
        if plain(module, nn.Linear):
            return Convolution([x], node, Param(path, "weight"), bias, spatial=False, name=path)
        if not plain(module, nn.Conv2d) or len(shape(x) or ()) != 4:
            return None
        assert isinstance(module, nn.Conv2d)
        given = {
            name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")
        }
        if module.padding_mode != "zeros":
            return None
        return _spatial(x, node, Param(path, "weight"), bias, given)
    if node.op != "call_function" or node.target not in (F.linear, F.conv2d, torch.conv2d):
        return None
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    weight, shift = param_of(given.get("weight")), param_of(given.get("bias"))
    if weight is None or (given.get("bias") is not None and shift is None):
        return None
    if node.target is F.linear:
        return Convolution([x], node, weight, shift, spatial=False, name=str(weight.path))
    if len(shape(x) or ()) != 4:
        return None
    return _spatial(x, node, weight, shift, given)


def _spatial(
    x: fx.Node, node: fx.Node, weight: Param, bias: Param | None, given: Mapping[str, Any]
) -> Convolution | None:
    stride, padding = _pair(given.get("stride", 1)), _pair(given.get("padding", 0))
    dilation, groups = _pair(given.get("dilation", 1)), given.get("groups", 1)
    if stride is None or padding is None or dilation is None or not isinstance(groups, int):
        return None
    return Convolution([x], node, weight, bias, stride, padding, dilation, groups, name=weight.path)


def normalisation(node: fx.Node, modules: Modules) -> Norm | None:
    """Batch normalisation by running statistics, over [B, C] or [B, C, H, W]."""
    module, x = module_of(node, modules), node.args[0] if node.args else None
    if len(shape(x) or ()) not in (2, 4):
        return None
    if module is not None:
        if len(node.args) != 1 or node.kwargs or not any(plain(module, k) for k in _NORMS):
            return None
        if module.running_mean is None or module.training:
            return None
        path = str(node.target)
        gain, shift = (
            Param(path, name) if getattr(module, name) is not None else None
            for name in ("weight", "bias")
        )
        return Norm(
            Param(path, "running_mean"), Param(path, "running_var"), gain, shift,
            float(module.eps))  # type: ignore[arg-type]  # fmt: skip
    if node.op != "call_function" or node.target not in (F.batch_norm, torch.batch_norm):
        return None
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum",
             "eps")  # fmt: skip
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if node.target is torch.batch_norm or given.get("training", False) is not False:
        return None
    mean, var = param_of(given.get("running_mean")), param_of(given.get("running_var"))
    gain, shift = param_of(given.get("weight")), param_of(given.get("bias"))
    eps = given.get("eps", 1e-5)
    if mean is None or var is None or not isinstance(eps, float):
        return None
    if any(given.get(name) is not None and param_of(given[name]) is None for name in names[3:5]):
        return None
    return Norm(mean, var, gain, shift, eps)


def activation(node: fx.Node, modules: Modules) -> str | None:
    if shape(node) is None or not node.args or shape(node.args[0]) is None:
        return None
    module = module_of(node, modules)
    if module is not None:
        if plain(module, nn.GELU):
            return "gelu" if getattr(module, "approximate", "none") == "none" else "gelu_tanh"
        return next((name for kind, name in _ACTS.items()
                     if isinstance(kind, type) and plain(module, kind)), None)  # fmt: skip
    if node.op == "call_function" and node.target is F.gelu:
        tanh = node.kwargs.get("approximate", "none") == "tanh" or "tanh" in node.args[1:]
        return "gelu_tanh" if tanh else "gelu"
    if node.op in ("call_function", "call_method"):
        return _ACTS.get(node.target)
    return None


def operands(node: fx.Node, targets: tuple[Any, ...] = _ADDS) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors of equal shape that the node adds."""
    if node.op not in ("call_function", "call_method") or node.target not in targets:
        return None
    if len(node.args) != 2 or node.kwargs or shape(node) is None:
        return None
    a, b = node.args
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)) or "get_attr" in (a.op, b.op):
        return None
    same = shape(a) == shape(b) == shape(node) and a.meta["dtype"] == b.meta["dtype"]
    return (a, b) if same else None


def _channel_constant(node: fx.Node, targets: tuple[Any, ...], source: fx.Node) -> Param | None:
    if node.op not in ("call_function", "call_method") or node.target not in targets:
        return None
    if len(node.args) != 2 or node.kwargs or node.args[0] is not source:
        return None
    param, sizes = param_of(node.args[1]), node.args[1].meta.get("shape")  # type: ignore[union-attr]
    channels = (shape(source) or (0, 0))[1]
    if param is None or sizes is None or sizes[-2:] != (1, 1):
        return None
    return param if sizes in ((channels, 1, 1), (1, channels, 1, 1)) else None


def normaliser(source: fx.Node) -> tuple[fx.Node, Param, Param] | None:
    """(x - mean) / std on the network's input: the node that makes it, and its two constants."""
    if len(shape(source) or ()) != 4 or len(source.users) != 1:
        return None
    centred = next(iter(source.users))
    mean = _channel_constant(centred, _SUBTRACTIONS, source)
    if mean is None or len(centred.users) != 1:
        return None
    scaled = next(iter(centred.users))
    std = _channel_constant(scaled, _DIVISIONS, centred)
    return None if std is None else (scaled, mean, std)
