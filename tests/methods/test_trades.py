"""TRADES against the published loop, with its three train-mode passes and with two."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard import methods

from .loops import ALPHA, EPS, STEPS, Passes, ascend, assert_same_network, sgd, train_with

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}


def published_loop(model, batches, *, beta, passes):
    torch.manual_seed(3)
    optimizer, losses = sgd(model), []
    for x, y in batches:
        model.eval()
        start = x + 0.001 * torch.randn(x.shape).double()
        # As published, the clean branch is computed again in every step.
        x_adv = ascend(
            x,
            start,
            lambda u, x=x: F.kl_div(
                model(u).log_softmax(1), model(x).softmax(1).detach(), reduction="sum"
            ),
        )
        model.train()
        clean = model(x)
        adv = model(x_adv)
        target = model(x) if passes == 3 else clean
        divergence = F.kl_div(adv.log_softmax(1), target.softmax(1), reduction="sum") / len(x)
        loss = F.cross_entropy(clean, y) + beta * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("faithful", "passes"), [(False, 2), (True, 3)])
@pytest.mark.parametrize("beta", [1.0, 6.0])
def test_three_steps_equal_the_published_loop(setting, faithful, passes, beta):
    method = methods.build("trades", setting.student, faithful=faithful, beta=beta, **ATTACK)
    losses = train_with(method, setting.batches)
    expected = published_loop(setting.twin, setting.batches, beta=beta, passes=passes)
    assert losses == pytest.approx(expected, rel=1e-8)
    assert_same_network(setting.student, setting.twin)


@pytest.mark.parametrize(
    ("faithful", "order"), [(False, ["x", "x_adv"]), (True, ["x", "x_adv", "x"])]
)
def test_order_of_the_passes(setting, faithful, order):
    x, y = setting.batch
    method = methods.build("trades", setting.student, faithful=faithful, **ATTACK)
    x_adv = method.attack(x, y)
    passes = Passes(setting.student, x=x, x_adv=x_adv)
    method.outer(x, x_adv, y)
    assert passes.seen == order


def test_attack_leaves_modes_and_statistics_alone(setting):
    setting.student[1].eval()
    flags = [module.training for module in setting.student.modules()]
    before = {name: t.clone() for name, t in setting.student.state_dict().items()}
    methods.build("trades", setting.student, **ATTACK).attack(*setting.batch)
    assert [module.training for module in setting.student.modules()] == flags
    assert all(torch.equal(before[k], v) for k, v in setting.student.state_dict().items())
