"""TRADES' names against its published behaviour, its traps included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard.compat import trades
from tests.compat.twins import gaussian, inputs_of, twins
from tests.methods.loops import ascend


def divergence(adv, clean):
    return F.kl_div(adv.log_softmax(1), clean.softmax(1), reduction="sum")


def sgd_on_delta(model, x, eps, steps):
    delta = (0.001 * torch.randn(x.shape).to(x)).requires_grad_()
    optimizer = torch.optim.SGD([delta], lr=eps / steps * 2)
    for _ in range(steps):
        optimizer.zero_grad()
        (-divergence(model(x + delta), model(x))).backward()
        norms = delta.grad.flatten(1).norm(dim=1)
        delta.grad /= norms.view(-1, 1, 1, 1)
        if (norms == 0).any():
            delta.grad[norms == 0] = torch.randn_like(delta.grad[norms == 0])
        optimizer.step()
        with torch.no_grad():
            delta.add_(x).clamp_(0, 1).sub_(x).renorm_(2, 0, eps)
    return (x + delta).detach()


def published(model, x, y, optimizer, alpha, eps, steps, beta, distance):
    model.eval()
    x_adv = gaussian(x)
    if distance == "l_inf":
        x_adv = ascend(x, x_adv, lambda u: divergence(model(u), model(x)), eps, alpha, steps)
    else:
        x_adv = sgd_on_delta(model, x, eps, steps)
    model.train()
    x_adv = x_adv.clamp(0, 1)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    return loss + beta * divergence(model(x_adv), model(x)) / len(x)


@pytest.mark.parametrize("distance, eps", [("l_inf", 0.1), ("l_2", 0.7)])
def test_loss_gradients_and_side_effects(distance, eps):
    pair = twins()
    mine, theirs = pair.optimizers()
    torch.manual_seed(3)
    loss = trades.trades_loss(
        pair.ours, pair.x, pair.y, mine, 0.03, eps, 4, beta=6.0, distance=distance
    )
    assert all(p.grad is None for p in pair.ours.parameters())
    after = torch.get_rng_state()
    torch.manual_seed(3)
    expected = published(pair.theirs, pair.x, pair.y, theirs, 0.03, eps, 4, 6.0, distance)
    assert torch.equal(torch.get_rng_state(), after)
    pair.assert_same_step(loss, expected)
    assert pair.ours.training


def test_a_zero_gradient_moves_along_noise_in_l2():
    pair = twins()
    for net in (pair.ours, pair.theirs):
        torch.nn.init.zeros_(net[-1].weight)
    mine, theirs = pair.optimizers()
    torch.manual_seed(3)
    loss = trades.trades_loss(pair.ours, pair.x, pair.y, mine, epsilon=0.7, distance="l_2")
    torch.manual_seed(3)
    expected = published(pair.theirs, pair.x, pair.y, theirs, 0.003, 0.7, 10, 1.0, "l_2")
    pair.assert_same_step(loss, expected)


def test_the_start_leaves_the_box_and_defaults_are_not_eight_255ths():
    pair = twins()
    x = torch.zeros_like(pair.x)
    seen = inputs_of(pair.ours)
    (mine, _) = pair.optimizers()
    trades.trades_loss(pair.ours, x, pair.y, mine, engine=False)
    first, last = seen[1], seen[-2]
    assert first.min() < 0 and first.abs().max() < 0.01
    # Ten steps of 0.003 from near 0 do not reach 0.031: the published defaults.
    assert 0.02 < last.max() < 0.0350 and last.min() == 0
    assert len(seen) == 1 + 10 + 3


def test_an_unknown_distance_is_refused_before_anything_changes():
    pair = twins()
    (mine, _) = pair.optimizers()
    pair.ours.eval()
    with pytest.raises(ValueError, match="unknown distance 'linf'"):
        trades.trades_loss(pair.ours, pair.x, pair.y, mine, distance="linf")
    with pytest.raises(ValueError, match="epsilon must be finite and not negative"):
        trades.trades_loss(pair.ours, pair.x, pair.y, mine, epsilon=-1.0)
    assert not pair.ours.training and all(p.grad is not None for p in pair.ours.parameters())


def test_what_the_loss_would_stumble_over_is_refused_before_the_attack(monkeypatch):
    pair = twins()
    monkeypatch.setattr(trades, "pgd_kl", None)
    with pytest.raises(TypeError, match="y must hold integer class indices, but is float32"):
        trades.trades_loss(pair.ours, pair.x, pair.y.float(), pair.optimizers()[0])
    with pytest.raises(TypeError, match="optimizer must be a torch.optim.Optimizer, but is"):
        trades.trades_loss(pair.ours, pair.x, pair.y, None)
