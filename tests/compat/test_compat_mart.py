"""MART's names against its published behaviour."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard.compat import mart
from tests.compat.twins import gaussian, twins
from tests.methods.loops import ascend


def published_loss(z, z_adv, y, beta):
    q = z_adv.softmax(1)
    top = q.argsort(1)[:, -2:]
    other = torch.where(top[:, 1] == y, top[:, 0], top[:, 1])
    loss = F.cross_entropy(z_adv, y) + F.nll_loss((1.0001 - q + 1e-12).log(), other)
    p = z.softmax(1)
    rows = F.kl_div((q + 1e-12).log(), p, reduction="none").sum(1)
    return loss + beta * (rows * (1.0000001 - p[torch.arange(len(y)), y])).sum() / len(y)


def published(model, x, y, optimizer, alpha, eps, steps, beta):
    model.eval()
    x_adv = ascend(x, gaussian(x), lambda u: F.cross_entropy(model(u), y), eps, alpha, steps)
    model.train()
    optimizer.zero_grad()
    z, z_adv = model(x), model(x_adv)
    return published_loss(z, z_adv, y, beta)


@pytest.mark.parametrize("beta", [5.0, 6])
def test_loss_gradients_and_side_effects(beta):
    pair = twins()
    mine, theirs = pair.optimizers()
    torch.manual_seed(3)
    loss = mart.mart_loss(pair.ours, pair.x, pair.y, mine, 0.03, 0.1, 4, beta)
    assert all(p.grad is None for p in pair.ours.parameters())
    torch.manual_seed(3)
    expected = published(pair.theirs, pair.x, pair.y, theirs, 0.03, 0.1, 4, beta)
    pair.assert_same_step(loss, expected)
    assert pair.ours.training


def test_gradient_is_finite_where_a_probability_underflows():
    z = torch.tensor([[400.0, -400.0, 0.0]], requires_grad=True)
    y = torch.tensor([0])
    published_loss(z, torch.zeros(1, 3), y, 6.0).backward()
    assert not torch.isfinite(z.grad).all()
    z.grad = None
    mart._boosted(z, torch.zeros(1, 3), y, 6.0).backward()
    assert torch.isfinite(z.grad).all()


def test_a_distance_that_switches_the_attack_off_is_refused():
    pair = twins()
    with pytest.raises(ValueError, match="unknown distance 'l_2'"):
        mart.mart_loss(pair.ours, pair.x, pair.y, pair.optimizers()[0], distance="l_2")
