"""Five training steps of a method beside five of a loop written by hand, from equal networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from .loops import EPS, assert_same_network, network

STEPS_OF_TRAINING = 5


@dataclass
class Case:
    """A method around networks of its own, and one step of the loop around their twins.

    `by_hand(x, y, epoch)` attacks and returns x' and the loss; `pairs` are the networks trained by
    the one and the other.
    """

    method: nn.Module
    by_hand: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
    pairs: list[tuple[nn.Module, nn.Module]]


def twins(dtype: torch.dtype, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    return network(seed).to(dtype), network(seed).to(dtype)


def teacher(dtype: torch.dtype, seed: int = 1) -> nn.Module:
    # Sharper than a fresh network, so that its output matters.
    net = network(seed).to(dtype).eval()
    with torch.no_grad():
        net[-1].weight.mul_(8)
    return net


def batches(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.rand(6, 1, 8, 8, generator=generator).to(dtype),
            torch.randint(5, (6,), generator=generator),
        )
        for _ in range(STEPS_OF_TRAINING)
    ]


def uniform_start(x: Tensor) -> Tensor:
    return x + torch.rand(x.shape).to(x) * 2 * EPS - EPS


def gaussian_start(x: Tensor) -> Tensor:
    return x + 0.001 * torch.randn(x.shape).to(x)


def sgd(parameters) -> torch.optim.SGD:
    return torch.optim.SGD(list(parameters), lr=0.1, momentum=0.9, weight_decay=2e-4)


def step(optimizer: torch.optim.SGD, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def assert_same_training(make: Callable[[torch.dtype], Case], epochs: Sequence[int] = ()) -> None:
    """fp64: losses, parameters and BatchNorm statistics; fp32 from the loop's x': parameters."""
    epochs = epochs or [1] * STEPS_OF_TRAINING
    _whole_steps(make(torch.float64), epochs)
    _outer_passes(make(torch.float32), epochs)


def _whole_steps(case: Case, epochs: Sequence[int]) -> None:
    torch.manual_seed(3)
    ours = sgd(case.method.trainable_parameters())
    losses = []
    for (x, y), epoch in zip(batches(torch.float64), epochs, strict=True):
        case.method.on_epoch(epoch, 200)
        case.method.student.train()
        loss, logs = case.method(x, y)
        assert all(value.ndim == 0 and not value.requires_grad for value in logs.values())
        step(ours, loss)
        losses.append(loss.item())
    torch.manual_seed(3)
    theirs = sgd(p for _, twin in case.pairs for p in twin.parameters())
    expected = []
    for (x, y), epoch in zip(batches(torch.float64), epochs, strict=True):
        _, loss = case.by_hand(x, y, epoch)
        step(theirs, loss)
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-9)
    for network_, twin in case.pairs:
        assert_same_network(network_, twin)


def _outer_passes(case: Case, epochs: Sequence[int]) -> None:
    ours = sgd(case.method.trainable_parameters())
    theirs = sgd(p for _, twin in case.pairs for p in twin.parameters())
    for (x, y), epoch in zip(batches(torch.float32), epochs, strict=True):
        x_adv, expected = case.by_hand(x, y, epoch)
        step(theirs, expected)
        case.method.on_epoch(epoch, 200)
        case.method.student.train()
        loss, _ = case.method.outer(x, x_adv, y)
        step(ours, loss)
    for network_, twin in case.pairs:
        for (name, a), b in zip(network_.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(
                a, b, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
