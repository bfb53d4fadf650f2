"""Consecutive graph nodes under local autograd: whatever has no step of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastard.engine.aliases import written
from fastard.engine.layers import Segment
from fastard.engine.precision import FullPrecisionHead
from fastard.engine.values import Gradients

Values = list[Any]


class SegmentStep:
    """Runs the nodes as they are; the gradient comes from autograd over this piece alone."""

    def __init__(
        self, layer: Segment, modules: dict[str, nn.Module], reads: list[int], makes: list[int],
        constant: list[bool], low: torch.dtype | None, head: Callable[[], Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.reads, self.makes, self.constant = reads, makes, constant
        self.low, self.head = low, head
        self.writes = any(written(node, modules) is not None for node in layer.nodes)
        self.run = _compiled(layer, modules)

    def forward(self, values: Values, keep: bool) -> tuple[list[Tensor | None], list[Any]]:
        given: list[Any] = []
        leaves: list[Tensor | None] = []
        with torch.set_grad_enabled(keep):
            for value, constant in zip((values[i] for i in self.reads), self.constant, strict=True):
                leaf = None
                if isinstance(value, Tensor) and value.is_floating_point():
                    value = value.detach()
                    if not constant:
                        leaf = value.requires_grad_() if keep else None
                        # Others may read what it writes into; a leaf that requires a gradient
                        # refuses to be written into.
                        value = value.clone() if self.writes else value
                leaves.append(leaf)
                given.append(value)
            if self.low is None:
                outputs = self.run(*given)
            else:
                kind = next(t.device.type for t in given if isinstance(t, Tensor))
                with ExitStack() as around:
                    around.enter_context(torch.autocast(kind, dtype=self.low, cache_enabled=False))
                    if self.head is not None:
                        around.enter_context(FullPrecisionHead(self.head(), kind))
                    outputs = self.run(*given)
        for at, value in zip(self.makes, outputs, strict=True):
            values[at] = value.detach() if isinstance(value, Tensor) else value
        return leaves, list(outputs)

    def backward(
        self, saved: tuple[list[Tensor | None], list[Any]], grads: Gradients, retain: bool
    ) -> None:
        leaves, outputs = saved
        sources, seeds = [], []
        for at, output in zip(self.makes, outputs, strict=True):
            grad, _ = grads.take(at)
            if grad is None or not isinstance(output, Tensor) or not output.requires_grad:
                continue
            sources.append(output)
            seeds.append(grad.to(output.dtype))
        wanted = [(at, leaf) for at, leaf in zip(self.reads, leaves, strict=True)
                  if leaf is not None]  # fmt: skip
        if not sources or not wanted:
            return
        found = torch.autograd.grad(
            sources, [leaf for _, leaf in wanted], seeds, retain_graph=retain, allow_unused=True
        )  # fmt: skip
        for (at, _), grad in zip(wanted, found, strict=True):
            # autograd may answer with one buffer for several inputs, or with the seed itself.
            grads.add(at, grad, False)


def _compiled(layer: Segment, modules: dict[str, nn.Module]) -> fx.GraphModule:
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {
        node: graph.placeholder(f"input_{i}") for i, node in enumerate(layer.inputs)
    }
    for node in layer.nodes:
        known[node] = graph.node_copy(node, lambda n: known[n])
    graph.output(tuple(known[node] for node in layer.outputs))
    called = {str(n.target): modules[str(n.target)] for n in layer.nodes if n.op == "call_module"}
    return fx.GraphModule(called, graph)
