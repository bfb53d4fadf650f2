"""The engine's GPU kernels once: epilogues both ways, a network whose weights are folded."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fastard import ops, reference_layers
from fastard.engine import Program
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
        got = (
            ops.epilogue(*there[:4], act),
            ops.epilogue_backward(there[0], there[4], there[1], there[3], act),
        )
        wanted = (
            reference_layers.epilogue(x, scale, shift, other, act),
            reference_layers.epilogue_backward(x, saved, scale, other, act),
        )
        return got, [w.double() for w in wanted]

    return run


def network(device: str) -> Run:
    """Folding in front of and behind a convolution, a normalisation left alone, a linear layer."""

    def run() -> tuple[Result, Result]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Sequential(
                nn.BatchNorm2d(3), nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(),
                nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False),
                nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()  # fmt: skip
            for module in net:
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.running_mean, -0.2, 0.2)
                    nn.init.uniform_(module.running_var, 0.5, 1.5)
            x, seed = torch.rand(2, 3, 6, 6), torch.randn(2, 10)
        leaf = x.double().requires_grad_()
        exact = copy.deepcopy(net).double()(leaf)
        (dx,) = torch.autograd.grad(exact, leaf, seed.double())
        program = Program(net.to(device), "fp32")
        got = program.forward(x.to(device)), program.vjp(seed.to(device))
        if program.made is None or program.made.plan is None:
            raise RuntimeError(f"the network was not compiled: {program.made}")
        return got, (exact.detach(), dx)

    return run


def runs(device: str) -> Iterator[tuple[str, Run]]:
    """Every variant, by name."""
    kinds = (torch.float32, torch.bfloat16)
    for act, dtype, channels, last in itertools.product(ACTIVATIONS, kinds, (3, 16), (False, True)):
        form = "channels_last" if last else "contiguous"
        name = f"epilogue {act} {channels} channels {form} {dtype}"
        yield name, epilogue(act, dtype, channels, last, device)
    yield "fold_bn_ in a network", network(device)
