"""From a traced graph to the program's layers: drop, fold, fuse; the rest becomes segments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fastard.engine.layers import (
    Activation,
    Affine,
    Constant,
    Convolution,
    Layer,
    Network,
    Param,
    Segment,
    Sum,
)
from fastard.engine.recognise import (
    activation,
    convolution,
    dropped,
    normalisation,
    normaliser,
    operands,
    param_of,
)
from fastard.engine.trace import Traced, Untraceable


class _Example(fx.Interpreter):
    """Notes what each node makes for an example batch."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        tensor = isinstance(value, Tensor)
        if tensor and value.is_floating_point():
            n.meta["shape"], n.meta["dtype"] = tuple(value.shape), value.dtype
        n.meta["tensor"] = tensor
        return value


def run_example(model: nn.Module, graph: fx.Graph, x: Tensor) -> Tensor:
    """The graph's output for x, shapes noted on its nodes."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _Example(model, garbage_collect_values=True, graph=graph).run(x.clone())


def _drop(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    for node in list(graph.nodes):
        if dropped(node, modules) and isinstance(node.args[0], fx.Node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    # Assertions have done their work on the example.
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))


def only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


class _Fuser:
    def __init__(self, graph: fx.Graph, modules: dict[str, nn.Module], fold: bool) -> None:
        self.graph, self.modules, self.fold = graph, modules, fold
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.taken: set[fx.Node] = set()  # absorbed into a layer that stands elsewhere
        self.made: dict[fx.Node, Layer] = {}  # where layers stand

    def _next(self, node: fx.Node) -> fx.Node | None:
        user = only_user(node)
        return None if user is None or user in self.taken or user in self.made else user

    def _absorb(self, layer: Any, user: fx.Node) -> None:
        self.taken.add(layer.output)
        layer.output = user

    def convolutions(self) -> None:
        # The last to be computed takes a sum in: by then the other operand is there.
        for node in reversed(list(self.graph.nodes)):
            layer = convolution(node, self.modules)
            if layer is None:
                continue
            if self.fold:
                self._norm_after(layer)
            self._residual(layer)
            self._act(layer)
            self.made[layer.output] = layer

    def _norm_after(self, layer: Convolution) -> None:
        user = self._next(layer.output)
        norm = normalisation(user, self.modules) if user is not None else None
        flat = len(layer.output.meta["shape"]) == 2
        if user is not None and norm is not None and flat == (not layer.spatial):
            layer.after = norm
            self._absorb(layer, user)

    def _residual(self, layer: Convolution) -> None:
        user = self._next(layer.output)
        pair = operands(user) if user is not None else None
        if user is None or pair is None or pair[0] is pair[1]:
            return
        layer.inputs.append(pair[0] if pair[1] is layer.output else pair[1])
        self._absorb(layer, user)

    def _act(self, layer: Any) -> None:
        user = self._next(layer.output)
        act = activation(user, self.modules) if user is not None else None
        if user is not None and act is not None:
            layer.act = act
            self._absorb(layer, user)

    def norms(self) -> None:
        for node in self.graph.nodes:
            if node in self.taken or node in self.made:
                continue
            norm = normalisation(node, self.modules)
            if norm is None:
                continue
            user = only_user(node)
            reader = next((v for v in self.made.values() if isinstance(v, Convolution)
                           and v.inputs[0] is node and node not in v.inputs[1:]), None)  # fmt: skip
            if user is not None and reader is not None and self.fold and self._folds_before(reader):
                reader.before = norm
                reader.inputs[0] = node.args[0]
                self.taken.add(node)
                continue
            layer = Affine([node.args[0]], node, norm, name=str(node.target))
            self._act(layer)
            self.made[layer.output] = layer

    @staticmethod
    def _folds_before(reader: Convolution) -> bool:
        # Zero padding pads what the normalisation made, so that its shift is no constant there.
        plain = reader.groups == 1 and reader.before is None
        flat = len(reader.inputs[0].meta["shape"]) == 2
        return plain and (reader.padding == (0, 0) if reader.spatial else flat)

    def sums_and_activations(self) -> None:
        for node in self.graph.nodes:
            if node in self.taken or node in self.made:
                continue
            pair = operands(node)
            if pair is not None:
                layer: Any = Sum(list(pair), node)
                self._act(layer)
                self.made[layer.output] = layer
            elif (act := activation(node, self.modules)) is not None:
                self.made[node] = Activation([node.args[0]], node, act)

    def layers(self, source: fx.Node) -> list[Layer]:
        constants: list[Layer] = []
        found: list[Layer] = []
        run: list[fx.Node] = []

        def close() -> None:
            if run:
                found.append(_segment(list(run)))
                run.clear()

        folded = {  # parameters that live on inside layers only
            n for n in self.graph.nodes
            if n.op == "get_attr" and all(u in self.made or u in self.taken for u in n.users)
        }  # fmt: skip
        for node in self.graph.nodes:
            if node in self.taken or node is source or node.op in ("placeholder", "output"):
                continue
            param = param_of(node)
            if param is not None:
                if node not in folded:
                    constants.append(Constant([], node, param))
            elif node in self.made:
                close()
                found.append(self.made[node])
            else:
                run.append(node)
        close()
        return constants + found


def _segment(nodes: list[fx.Node]) -> Segment:
    inside = set(nodes)
    inputs: dict[fx.Node, None] = {}
    for node in nodes:
        inputs.update({v: None for v in node.all_input_nodes if v not in inside})
    outputs = [n for n in nodes if any(user not in inside for user in n.users)]
    return Segment(list(inputs), outputs[-1] if outputs else nodes[-1], nodes, outputs)


def fuse(traced: Traced, model: nn.Module, x: Tensor, fold: bool = True) -> Network:
    """The layers of a traced eval-mode model; x is an example of its input.

    Raises:
        Untraceable: the graph is not one tensor to one tensor of logits.
    """
    graph, modules = traced.graph, dict(model.named_modules())
    sources = [n for n in graph.nodes if n.op == "placeholder"]
    for node in graph.nodes:
        node.meta["opaque"] = node.op == "call_module" and node.target in traced.leaves
    logits = run_example(model, graph, x)
    result = next(n for n in graph.nodes if n.op == "output").args[0]
    if not isinstance(result, fx.Node) or not isinstance(logits, Tensor):
        raise Untraceable("its forward does not return one tensor")
    _drop(graph, modules)
    for extra in sources[1:]:
        if extra.users:
            raise Untraceable(f"its forward takes another input, {extra.name}")
    result = next(n for n in graph.nodes if n.op == "output").args[0]
    fuser = _Fuser(graph, modules, fold)
    source, mean, std = sources[0], None, None
    head = normaliser(source)
    if head is not None:
        source, mean, std = head
        fuser.taken |= {next(iter(sources[0].users)), source}
    fuser.convolutions()
    fuser.norms()
    fuser.sums_and_activations()
    layers = fuser.layers(source)
    network = Network(layers, source, result, mean, std, traced.leaves)
    _mark_head(network, modules)
    return network


def _mark_head(network: Network, modules: dict[str, nn.Module]) -> None:
    """The last linear layer stays in fp32, also where autograd runs it."""
    for layer in reversed(network.layers):
        if isinstance(layer, Convolution) and not layer.spatial:
            layer.head = True
            return
        if isinstance(layer, Segment):
            for node in reversed(layer.nodes):
                module = modules[str(node.target)] if node.op == "call_module" else None
                inner = [] if module is None else list(module.named_modules())
                for name, part in reversed(inner):
                    if isinstance(part, nn.Linear):
                        path = f"{node.target}.{name}".rstrip(".")
                        network.head = Param(path, "weight")
                        return
