"""The floor of an attack: a network's convolutions and matrix products alone, each by the fastest
algorithm at hand, in network order on buffers of their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastard import ops
from fastard.engine.convolve import OneDNN, depthwise, input_gradient, onednn
from fastard.engine.layers import Convolution
from fastard.engine.plan import Plan
from fastard.engine.weights import Folded

Run = Callable[[], Any]


def _fastest(candidates: list[Run], device: torch.device, rounds: int = 3) -> Run:
    best, chosen = float("inf"), candidates[0]
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for run in candidates:
        run()
        for _ in range(rounds):
            wait()
            begun = time.perf_counter()
            run()
            wait()
            taken = time.perf_counter() - begun
            if taken < best:
                best, chosen = taken, run
    return chosen


def _convolution(
    layer: Convolution, shape: tuple[int, ...], x: Tensor, grad: Tensor
) -> tuple[Run, Run]:
    """The layer's bare forward and input gradient."""
    weight = torch.randn(shape, dtype=x.dtype, device=x.device)
    bare = Convolution([], layer.output, layer.weight, None, layer.stride, layer.padding,
                       layer.dilation, layer.groups)  # fmt: skip
    forward: list[Run] = []
    backward: list[Run] = []
    for form in (torch.contiguous_format, torch.channels_last):
        bare_weight = weight.contiguous(memory_format=form) if x.is_cuda else weight
        given, seed = x.contiguous(memory_format=form), grad.contiguous(memory_format=form)
        forward.append(
            lambda given=given, weight=bare_weight: torch.ops.aten.convolution.default(
                given, weight, None, layer.stride, layer.padding, layer.dilation, False, [0, 0],
                layer.groups)
        )  # fmt: skip
        backward.append(
            lambda seed=seed, weight=bare_weight: input_gradient(seed, weight, x.shape, bare)
        )
    if not x.is_cuda and onednn()[0]:
        kernel = OneDNN(bare, Folded(shape[0], shape=shape, dtype=x.dtype, weight=weight))
        last = torch.channels_last
        given, seed = x.contiguous(memory_format=last), grad.contiguous(memory_format=last)
        forward.append(lambda: kernel.forward(given, None, False))
        backward.append(lambda: kernel.backward(seed, x.shape))
        if depthwise(bare, shape):
            taps = torch.randn(shape[2], shape[3], shape[0])
            s, p = layer.stride[0], layer.padding[0]
            forward.append(lambda: ops.layers.depthwise(given, taps, None, s, p, bits=False))
            backward.append(
                lambda: ops.layers.depthwise_backward(seed, taps, x.shape, s, p, None, None)
            )
    return _fastest(forward, x.device), _fastest(backward, x.device)


def floor(plan: Plan, model: nn.Module, x: Tensor) -> Run:
    """One forward and one input gradient of the plan's convolutions and linear layers alone."""
    forward: list[Run] = []
    backward: list[Run] = []
    for layer in plan.network.layers:
        if not isinstance(layer, Convolution):
            continue
        sizes = [(len(x), *v.meta["shape"][1:]) for v in (layer.inputs[0], layer.output)]
        dtype = torch.float32 if layer.head else plan.dtype
        given, grad = (torch.randn(s, device=plan.device).to(dtype) for s in sizes)
        shape = plan.shapes[id(layer)]
        if layer.spatial:
            ahead, back = _convolution(layer, shape, given, grad)
        else:
            weight = torch.randn(shape, dtype=dtype, device=plan.device)
            ahead = lambda g=given, w=weight: torch.nn.functional.linear(g, w)  # noqa: E731
            back = lambda g=grad, w=weight: torch.matmul(g, w)  # noqa: E731
        forward.append(ahead)
        backward.append(back)

    @torch.no_grad()
    def run() -> None:
        for step in (*forward, *reversed(backward)):
            step()

    return run
