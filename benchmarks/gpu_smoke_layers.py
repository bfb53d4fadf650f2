"""The engine's GPU kernels once: epilogues both ways, folding."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fastard import ops, reference_layers
from fastard.engine.layers import Norm, Param
from fastard.engine.weights import Weights
from fastard.reference_layers import ACTIVATIONS

Result = Sequence[Tensor]
Run = Callable[[], tuple[Result, Result]]


def epilogue(act: str, dtype: torch.dtype, channels: int, last: bool, device: str) -> Run:
    def run() -> tuple[Result, Result]:
        generator = torch.Generator().manual_seed(channels)
        form = torch.channels_last if last else torch.contiguous_format
        x, other, saved = (
            torch.randn(2, channels, 5, 8, generator=generator).to(dtype)
            .contiguous(memory_format=form) for _ in range(3)
        )  # fmt: skip
        scale, shift = torch.randn(2, channels, generator=generator)
        there = [t.to(device) for t in (x, scale, shift, other, saved)]
        pre = torch.empty_like(there[0])
        # As after a convolution: the bias is added again, two gradients meet, the first in fp32.
        after = there[4], None, None, act
        got = (
            ops.epilogue(*there[:4], act, pre=pre),
            ops.epilogue_backward(there[0], there[4], there[1], there[3], act),
            ops.epilogue_backward(there[0].float(), *after, None, there[2], there[3]),
            pre,
        )
        wanted = (
            reference_layers.epilogue(x, scale, shift, other, act),
            reference_layers.epilogue_backward(x, saved, scale, other, act),
            reference_layers.epilogue_backward(x.float(), saved, None, None, act, shift, other),
            reference_layers.summed(x, scale, shift, other).to(dtype),
        )
        return got, [w.double() for w in wanted]

    return run


def fold(dtype: torch.dtype, last: bool, device: str) -> Run:
    """A convolution between two normalisations, and a normalisation left alone."""

    def run() -> tuple[Result, Result]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.ModuleList([nn.BatchNorm2d(5), nn.Conv2d(5, 7, 3), nn.BatchNorm2d(7)])
            for norm in (net[0], net[2]):
                nn.init.uniform_(norm.running_mean, -0.2, 0.2)
                nn.init.uniform_(norm.running_var, 0.5, 1.5)
        norms = [
            Norm(*(Param(k, n) for n in ("running_mean", "running_var", "weight", "bias")), 1e-5)
            for k in ("0", "2")
        ]
        own = [getattr(net[2], n) for n in ("weight", "bias", "running_mean", "running_var")]
        first = [getattr(net[0], n) for n in ("weight", "bias", "running_mean", "running_var")]
        given = [net[1].weight, net[1].bias, *own, *first]
        weight, bias, _ = reference_layers.fold(given, 1e-5, 1e-5, 7)
        _, shift, scale = reference_layers.fold([None, None, *own, *[None] * 4], 1e-5, 0.0, 7)
        assert weight is not None
        wanted = [t.detach().double() for t in (weight, bias, shift, scale)]
        weights = Weights(torch.device(device))
        held = Param("1", "weight"), Param("1", "bias")
        folded = weights.convolution(*held, *norms, (7, 5, 3, 3), dtype, last)
        alone = weights.affine(norms[1], 7)
        weights.allocate()
        weights.refresh(net.to(device))
        got = (folded.weight, folded.bias, alone.bias, alone.scale)
        return [t for t in got if t is not None], wanted

    return run


def runs(device: str) -> Iterator[tuple[str, Run]]:
    """Every variant, by name."""
    kinds = (torch.float32, torch.bfloat16)
    for act, dtype, channels, last in itertools.product(ACTIVATIONS, kinds, (3, 16), (False, True)):
        form = "channels_last" if last else "contiguous"
        name = f"epilogue {act} {channels} channels {form} {dtype}"
        yield name, epilogue(act, dtype, channels, last, device)
    for dtype, last in itertools.product(kinds, (False, True)):
        form = "channels_last" if last else "contiguous"
        yield f"fold_bn_ {form} {dtype}", fold(dtype, last, device)
