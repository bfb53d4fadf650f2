"""Fast adversarial training: FGSM-RS, N-FGSM and Free, beside their published loops."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastard import methods

from .loops import EPS, assert_same_network
from .parity import Case, assert_same_training, batches, sgd, twins


def input_gradient(model, x, y):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y), x)[0]


@pytest.mark.parametrize("train", [True, False])
def test_fgsm_rs_equals_the_published_loop(train):
    def make(dtype):
        student, twin = twins(dtype)

        def by_hand(x, y, epoch):
            delta = torch.rand(x.shape).to(x) * 2 * EPS - EPS
            delta = torch.max(torch.min(delta, 1 - x), 0 - x)
            grad = input_gradient(twin.train(train), x + delta, y)
            delta = (delta + 1.25 * EPS * grad.sign()).clamp(-EPS, EPS)
            x_adv = x + torch.max(torch.min(delta, 1 - x), 0 - x)
            return x_adv, F.cross_entropy(twin.train()(x_adv), y)

        mode = "train" if train else "eval"
        method = methods.build("fgsm-rs", student, eps=EPS, attack_mode=mode)
        return Case(method, by_hand, [(student, twin)])

    assert_same_training(make)


@pytest.mark.parametrize("train", [True, False])
def test_n_fgsm_equals_the_published_loop(train):
    def make(dtype):
        student, twin = twins(dtype)

        def by_hand(x, y, epoch):
            eta = torch.rand(x.shape).to(x) * 4 * EPS - 2 * EPS
            eta = torch.max(torch.min(eta, 1 - x), 0 - x)
            grad = input_gradient(twin.train(train), x + eta, y)
            delta = eta + EPS * grad.sign()
            x_adv = x + torch.max(torch.min(delta, 1 - x), 0 - x)
            return x_adv, F.cross_entropy(twin.train()(x_adv), y)

        mode = "train" if train else "eval"
        method = methods.build("n-fgsm", student, eps=EPS, attack_mode=mode)
        return Case(method, by_hand, [(student, twin)])

    assert_same_training(make)


def test_n_fgsm_leaves_the_ball_and_stays_in_the_box():
    student, _ = twins(torch.float64)
    x, y = batches(torch.float64)[0]
    x_adv = methods.build("n-fgsm", student, eps=EPS).attack(x, y)
    distance = (x_adv - x).abs().max()
    assert 2 * EPS < distance <= 3 * EPS + 1e-9
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    with pytest.raises(ValueError, match="option norm must be Linf for n-fgsm, but is 'L2'"):
        methods.build("n-fgsm", student, norm="L2")


def test_presets_attack_in_train_mode_as_published():
    for name, expected in [("fgsm-rs", {"step": 1.25}), ("n-fgsm", {"step": 1.0, "k": 2.0})]:
        options = methods.build(name, nn.Identity()).options
        assert options.attack_mode == "train"
        recipe = methods.preset(name)
        assert (recipe.schedule, recipe.peak, recipe.lr) == ("cyclic", 0.5, 0.2)
        assert {key: getattr(options, key) for key in expected} == expected


def free_loop(model, data, *, m, clip_start=False):
    """The published loop; its perturbation has the size of a batch."""
    optimizer = sgd(model.parameters())
    delta, losses = torch.zeros_like(data[0][0]), []
    for x, y in data:
        for _ in range(m):
            carried = delta[: len(x)]
            if clip_start:
                carried = (x + carried).clamp(0, 1) - x
            leaf = carried.clone().requires_grad_()
            loss = F.cross_entropy(model(x + leaf), y)
            optimizer.zero_grad()
            loss.backward()
            moved = (carried + EPS * leaf.grad.sign()).clamp(-EPS, EPS)
            delta[: len(x)] = torch.max(torch.min(moved, 1 - x), 0 - x)
            optimizer.step()
            losses.append(loss.item())
    return losses, delta


def train_free(method, data):
    optimizer, losses = sgd(method.trainable_parameters()), []
    for x, y in data:
        for _ in range(method.replays):
            loss, _ = method(x, y)
            optimizer.zero_grad()
            loss.backward()
            method.after_backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("clip_start", [False, True])
def test_free_equals_the_published_loop_with_a_short_batch(clip_start):
    student, twin = twins(torch.float64)
    data = batches(torch.float64)
    data[3] = tuple(t[:4] for t in data[3])
    method = methods.build("free", student, m=3, eps=EPS, clip_start=clip_start)
    assert method.replays == 3
    expected, delta = free_loop(twin, data, m=3, clip_start=clip_start)
    assert train_free(method, data) == pytest.approx(expected, rel=1e-9)
    assert_same_network(student, twin)
    torch.testing.assert_close(method.state_dict()["_extra_state"], delta, rtol=0, atol=1e-12)


def test_free_in_fp32():
    student, twin = twins(torch.float32)
    data = batches(torch.float32)
    train_free(methods.build("free", student, m=1, eps=EPS), data)
    free_loop(twin, data, m=1)
    for a, b in zip(student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_free_makes_one_pass_and_one_backward_a_replay():
    student, _ = twins(torch.float64)
    train_free(methods.build("free", student, m=2, eps=EPS), batches(torch.float64)[:3])
    assert int(student[1].num_batches_tracked) == 6


def test_free_carries_its_perturbation_in_its_state():
    student, _ = twins(torch.float64)
    data = batches(torch.float64)
    method = methods.build("free", student, m=2, eps=EPS)
    train_free(method, data[:2])
    other = methods.build("free", copy.deepcopy(student), m=2, eps=EPS)
    other.load_state_dict(method.state_dict())
    x, y = data[2]
    assert torch.equal(method.attack(x, y), other.attack(x, y))
    assert not torch.equal(other.attack(x, y), x)
    copied = pickle.loads(pickle.dumps(method))
    assert torch.equal(copied.attack(x, y), method.attack(x, y))
    # Larger batches begin at the images in the places that are new.
    both = torch.cat([x, x])
    assert torch.equal(method.attack(both, torch.cat([y, y]))[6:], x)


def test_free_says_what_the_trainer_forgot():
    student, _ = twins(torch.float64)
    method = methods.build("free", student, eps=EPS)
    x, y = batches(torch.float64)[0]
    with pytest.raises(RuntimeError, match=r"must follow loss.backward\(\)"):
        method.after_backward()
    with torch.no_grad():
        method(x, y)
    loss, _ = method(x, y)
    with pytest.raises(RuntimeError, match=r"must follow loss.backward\(\)"):
        method.after_backward()
    loss.backward()
    with pytest.raises(RuntimeError, match=r"needs method.after_backward\(\) after every"):
        method(x, y)
    with pytest.raises(ValueError, match="option m must be an integer above 0"):
        methods.build("free", student, m=0)


def test_other_methods_replay_nothing_and_need_no_call():
    method = methods.build("natural", twins(torch.float64)[0])
    assert method.replays == 1
    method.after_backward()
