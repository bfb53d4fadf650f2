"""PGD adversarial training and natural training against loops written by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard import methods

from .loops import ALPHA, EPS, STEPS, Passes, ascend, assert_same_network, sgd, train_with

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


def rice_loop(model, batches, *, last_clean_pass):
    """Rice's steps: a pass to score restarts, the loss, the optimiser, a pass to log."""
    torch.manual_seed(3)
    optimizer, losses = sgd(model), []
    model.train()
    for i, (x, y) in enumerate(batches):
        start = (x + torch.rand(x.shape).double() * 2 * EPS - EPS).clamp(0, 1)
        x_adv = ascend(x, start, lambda u, y=y: F.cross_entropy(model(u), y))
        model(x_adv)
        loss = F.cross_entropy(model(x_adv), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if last_clean_pass or i + 1 < len(batches):
            model(x)
        losses.append(loss.item())
    return losses


def test_rice_has_the_passes_and_statistics_of_the_published_loop(setting):
    method = methods.build("rice", setting.student, **ATTACK)
    losses = train_with(method, setting.batches)
    expected = rice_loop(setting.twin, setting.batches, last_clean_pass=False)
    assert losses == pytest.approx(expected, rel=1e-8)
    assert_same_network(setting.student, setting.twin)
    passes = STEPS + 3
    assert int(setting.student[1].num_batches_tracked) == passes * len(setting.batches) - 1


def test_the_pass_that_is_due_comes_first_and_is_in_the_state(setting):
    method = methods.build("rice", setting.student, **ATTACK)
    (x, y), (x_next, y_next), _ = setting.batches
    method(x, y)
    resumed = methods.build("rice", setting.twin, **ATTACK)
    setting.twin.load_state_dict(setting.student.state_dict())
    resumed.load_state_dict(method.state_dict())
    for each, network in ((method, setting.student), (resumed, setting.twin)):
        torch.manual_seed(5)
        passes = Passes(network, x=x, x_next=x_next)
        each(x_next, y_next)
        assert passes.seen == ["x"] + ["?"] * (STEPS + 2)
    assert_same_network(setting.student, setting.twin)


def test_without_faithful_nothing_is_remembered(setting):
    method = methods.build("pgd-at", setting.student, **ATTACK)
    train_with(method, setting.batches)
    assert method.get_extra_state().numel() == 0
    assert int(setting.student[1].num_batches_tracked) == len(setting.batches)


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
