"""Parameter groups, clipping and the averages of the weights."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from fastard.training.averaging import WeightAverage
from fastard.training.optim import Stepper, groups


def network():
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))


def settings(**given):
    defaults = {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.01}
    defaults |= {"no_decay_norm_bias": False, "clip_grad": None, "sgd": "auto"}
    return SimpleNamespace(**{**defaults, **given})


def stepper(net, **given):
    return Stepper(net.parameters(), settings(**given), torch.device("cpu"), scaled=False)


def test_norms_and_biases_have_no_decay():
    net = network()
    matrices, vectors = groups(net.parameters(), 0.01, spare=True)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.01, 0.0)
    assert [id(p) for p in matrices["params"]] == [id(net[0].weight), id(net[3].weight)]
    assert len(vectors["params"]) == 4
    (everything,) = groups(net.parameters(), 0.01, spare=False)
    assert len(everything["params"]) == 6
    # No gradient but decay: only the matrices shrink.
    before = copy.deepcopy(net.state_dict())
    step = stepper(net, no_decay_norm_bias=True)
    step.backward(sum(p.sum() for p in net.parameters()) * 0)
    step.step()
    for name, value in net.named_parameters():
        factor = 1 - 0.1 * 0.01 if value.dim() > 1 else 1.0
        torch.testing.assert_close(value.detach(), before[name] * factor)


def test_clipping_bounds_the_whole_gradient():
    net = network()
    step = stepper(net, clip_grad=0.5, weight_decay=0.0, momentum=0.0, lr=1.0)
    before = [p.detach().clone() for p in net.parameters()]
    step.backward(100 * net(torch.randn(8, 5)).square().sum())
    step.step()
    moves = [b - p.detach() for b, p in zip(before, net.parameters(), strict=True)]
    assert math.sqrt(sum(m.square().sum().item() for m in moves)) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("sgd", ["auto", "foreach", "fused", "loop"])
def test_implementations_agree(sgd):
    net, plain = (network() for _ in range(2))
    plain.load_state_dict(net.state_dict())
    step = stepper(net, sgd=sgd)
    theirs = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    x = torch.randn(8, 5)
    for _ in range(3):
        step.backward(net(x).square().mean())
        step.step()
        theirs.zero_grad()
        plain(x).square().mean().backward()
        theirs.step()
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_restored_optimiser_keeps_its_new_hyper_parameters():
    net = network()
    old, new = stepper(net), stepper(net, weight_decay=0.5)
    old.backward(net(torch.randn(8, 5)).sum())
    old.step()
    new.load_state_dict(old.state_dict())
    assert new.sgd.param_groups[0]["weight_decay"] == 0.5
    assert torch.equal(
        new.sgd.state[net[0].weight]["momentum_buffer"],
        old.sgd.state[net[0].weight]["momentum_buffer"],
    )


def averaged_by_hand(kind, snapshots):
    total = [p.clone() for p in snapshots[0]]
    for count, parameters in enumerate(snapshots[1:], 1):
        for mean, p in zip(total, parameters, strict=True):
            mean += (p - mean) * (0.1 if kind == "ema" else 1 / (count + 1))
    return total


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_averages_are_those_of_torch_and_of_the_formula(kind):
    net = network()
    config = SimpleNamespace(average=kind, average_start=2, ema_decay=0.9)
    average = WeightAverage(net, config)
    theirs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9) if kind == "ema" else None)
    assert average.renewed([]) is net
    batches = [(torch.randn(8, 5), None) for _ in range(3)]
    snapshots = []
    for epoch in (1, 2, 3):
        for x, _ in batches:
            stepper(net, momentum=0.0).backward(net(x).square().mean())
            with torch.no_grad():
                for p in net.parameters():
                    p -= 0.1 * p.grad
            average.after_step(epoch)
            if kind == "ema" and epoch >= 2:
                theirs.update_parameters(net)
                snapshots.append([p.detach().clone() for p in net.parameters()])
        average.after_epoch(epoch)
        if kind == "swa" and epoch >= 2:
            theirs.update_parameters(net)
            snapshots.append([p.detach().clone() for p in net.parameters()])
    assert len(snapshots) == (6 if kind == "ema" else 2)
    found = average.renewed(batches)
    update_bn(batches, theirs.module)
    for key, value in theirs.module.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    for p, expected in zip(found.parameters(), averaged_by_hand(kind, snapshots), strict=True):
        torch.testing.assert_close(p.detach(), expected)
    mean = torch.cat([net_input(found, x) for x, _ in batches]).mean(0)
    torch.testing.assert_close(found[1].running_mean, mean)


def net_input(net, x):
    """What the normalisation sees."""
    return net[0](x).detach()
