"""Logits for the tests of losses, and their comparison with a formula."""

from __future__ import annotations

import torch
from torch import Tensor


def logits(seed: int, rows: int = 5, classes: int = 7, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, classes, dtype=torch.float64, generator=generator)


def labels(rows: int = 5, classes: int = 7) -> Tensor:
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(9))


def softmax(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(1, keepdim=True)


def kl(q_logits: Tensor, p_logits: Tensor) -> Tensor:
    """KL(p || q) of each row."""
    p, q = softmax(p_logits), softmax(q_logits)
    return (p * (p / q).log()).sum(1)


def nll(z: Tensor, y: Tensor) -> Tensor:
    """The cross entropy, averaged."""
    return -softmax(z)[torch.arange(len(y)), y].log().mean()


def assert_formula(ours, formula, *seeds: int, rtol: float = 1e-11) -> None:
    """Both of the same logits, one set a seed: value and gradients agree."""
    a, b = ([logits(seed).requires_grad_() for seed in seeds] for _ in range(2))
    value, expected = ours(*a), formula(*b)
    torch.testing.assert_close(value, expected, rtol=rtol, atol=1e-12)
    found = torch.autograd.grad(value, a, allow_unused=True)
    wanted = torch.autograd.grad(expected, b, allow_unused=True)
    for x, y in zip(found, wanted, strict=True):
        if y is None or x is None:
            assert (x is None or not x.any()) and (y is None or not y.any())
        else:
            torch.testing.assert_close(x, y, rtol=rtol * 10, atol=1e-12)
