"""PGD adversarial training and natural training against loops written by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard import methods

from .loops import ALPHA, EPS, STEPS, ascend, assert_same_network, sgd, train_with

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}


def madry_loop(model, batches, *, attack_mode):
    torch.manual_seed(3)
    optimizer, losses = sgd(model), []
    for x, y in batches:
        model.train(attack_mode == "train")
        start = (x + torch.rand(x.shape).double() * 2 * EPS - EPS).clamp(0, 1)
        x_adv = ascend(x, start, lambda u, y=y: F.cross_entropy(model(u), y, reduction="sum"))
        model.train()
        loss = F.cross_entropy(model(x_adv), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("attack_mode", ["eval", "train"])
def test_three_steps_equal_the_loop_with_its_statistics(setting, attack_mode):
    method = methods.build("pgd-at", setting.student, attack_mode=attack_mode, **ATTACK)
    losses = train_with(method, setting.batches)
    expected = madry_loop(setting.twin, setting.batches, attack_mode=attack_mode)
    assert losses == pytest.approx(expected, rel=1e-8)
    assert_same_network(setting.student, setting.twin)


def test_frozen_statistics_of_a_train_mode_attack(setting):
    method = methods.build(
        "pgd-at", setting.student, attack_mode="train", bn_stats="frozen", **ATTACK
    )
    before = setting.student[1].running_mean.clone()
    method.attack(*setting.batch)
    assert torch.equal(setting.student[1].running_mean, before)


def test_natural_training_is_cross_entropy(setting):
    method = methods.build("natural", setting.student)
    losses = train_with(method, setting.batches)
    optimizer, expected = sgd(setting.twin), []
    for x, y in setting.batches:
        loss = F.cross_entropy(setting.twin(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-12)
    assert_same_network(setting.student, setting.twin)
