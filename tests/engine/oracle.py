"""What the engine is held against: autograd, in fp64 and as users run it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastard.engine import Program

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def lived_in(model: nn.Module, x: Tensor, seed: int = 0) -> nn.Module:
    """The model in eval mode as if trained: normalisations with gains, shifts and the statistics of
    their inputs, no parameter all zero or so small that its branch does not count."""
    g = torch.Generator().manual_seed(seed)
    norms = [m for m in model.modules() if isinstance(m, NORMS)]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().max() < 1e-5:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.05)
        for m in norms:
            m.momentum = None
            if m.affine:
                m.weight.uniform_(0.5, 1.5, generator=g)
                m.bias.uniform_(-0.2, 0.2, generator=g)
            m.train()
        with torch.random.fork_rng(devices=[]):
            model(x)
    for m in norms:
        m.momentum = 0.1
    return model.eval()


def autograd(model, x: Tensor, dlogits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and input gradient by plain autograd."""
    leaf = x.clone().requires_grad_()
    logits = model(leaf.clone())
    (dx,) = torch.autograd.grad(logits, leaf, dlogits.to(logits.dtype))
    return logits.detach(), dx


def eager(model: nn.Module, x: Tensor, dlogits: Tensor) -> list[tuple[Tensor, Tensor]]:
    """By autograd in NCHW and in channels_last: the library's kernels differ in accuracy, above all
    convolutions' order of summation and group normalisation's variance."""
    last = torch.channels_last
    moved = copy.deepcopy(model).to(memory_format=last)
    return [autograd(model, x, dlogits), autograd(moved, x.to(memory_format=last), dlogits)]


def exact(model: nn.Module, x: Tensor, dlogits: Tensor) -> tuple[Tensor, Tensor]:
    """The same in fp64."""
    return autograd(copy.deepcopy(model).double(), x.double(), dlogits.double())


def error(a: Tensor, b: Tensor) -> Tensor:
    """The relative error of each sample."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    return (a - b).norm(dim=1) / b.norm(dim=1)


def median(a: Tensor, b: Tensor) -> float:
    return float(error(a, b).median())


def typical(a: Tensor, b: Tensor) -> float:
    """The error that a quarter of the samples do not exceed.

    One activation within rounding of its kink turns a sample's error from 1e-6 into 1e-3, in
    whichever of two right computations; in deep ReLU6 networks every second image has one.
    """
    return float(error(a, b).quantile(0.25, interpolation="lower"))


def answers(program: Program, x: Tensor, dlogits: Tensor) -> tuple[Tensor, Tensor]:
    return program.forward(x), program.vjp(dlogits)


def reason(program: Program) -> str:
    """Why the program runs what it runs."""
    return "" if program.made is None else program.made.reason


def agrees(model, x: Tensor, dlogits: Tensor, tolerance: float = 1e-5, **options) -> Program:
    """The program's answers are eager autograd's; returns the program."""
    program = Program(model, **options)
    got = answers(program, x, dlogits)
    wanted = answers(Program(model, engine=False), x, dlogits)
    for a, b in zip(got, wanted, strict=True):
        scale = b.abs().amax().clamp(min=1e-30)
        assert a.shape == b.shape and a.dtype == b.dtype
        assert float((a - b).abs().amax() / scale) <= tolerance, reason(program)
    return program
