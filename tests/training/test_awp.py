"""Adversarial weight perturbation beside a few lines of plain PyTorch, in fp64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastard.training.awp import AWP

GAMMA, LR, DECAY = 0.02, 0.1, 0.01


@pytest.fixture
def network():
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)]
    return nn.Sequential(*layers).double()


@pytest.fixture
def batch():
    return torch.rand(6, 1, 8, 8, dtype=torch.float64), torch.arange(6) % 3


def by_hand(network, x, y):
    """The published code: a proxy's gradient, scaled layer by layer; step; the way back."""
    proxy = copy.deepcopy(network)
    F.cross_entropy(proxy(x), y).backward()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, weight_decay=DECAY)
    moves = {}
    for (name, weight), twin in zip(network.named_parameters(), proxy.parameters(), strict=True):
        if weight.dim() > 1:
            moves[name] = GAMMA * weight.detach().norm() / (twin.grad.norm() + 1e-20) * twin.grad
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight += moves.get(name, 0.0)
    loss = F.cross_entropy(network(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight -= moves.get(name, 0.0)
    return loss.item()


def ours(network, x, y):
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, weight_decay=DECAY)
    with AWP(network, GAMMA).perturbed(lambda: F.cross_entropy(network(x), y)):
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_steps_are_those_of_the_published_code(network, batch):
    twin = copy.deepcopy(network)
    for _ in range(3):
        assert ours(network, *batch) == pytest.approx(by_hand(twin, *batch), abs=1e-12)
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(network.state_dict()[key], value, rtol=0, atol=1e-12)


def test_the_perturbation_raises_the_loss_and_goes_away_to_the_bit(network, batch):
    x, y = batch
    before = copy.deepcopy(network.state_dict())
    network.eval()

    def loss():
        return F.cross_entropy(network(x), y)

    plain = loss().item()
    with AWP(network, GAMMA).perturbed(loss):
        assert loss().item() > plain
        for name, weight in network.named_parameters():
            moved = (weight.detach() - before[name]).norm()
            expected = GAMMA * before[name].norm() if weight.dim() > 1 else 0.0
            assert moved.item() == pytest.approx(float(expected), abs=1e-9)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_block_that_raises_leaves_the_weights_as_they_were(network, batch):
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(RuntimeError, match="mine"):
        with AWP(network, GAMMA).perturbed(lambda: F.cross_entropy(network(batch[0]), batch[1])):
            raise RuntimeError("mine")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_the_first_pass_leaves_statistics_alone(network, batch):
    seen = []
    network[1].register_forward_hook(lambda m, i, o: seen.append(m.num_batches_tracked.item()))
    ours(network, *batch)
    assert seen == [1, 1]
    assert network[1].num_batches_tracked.item() == 1
