"""MART: its loss, its known constants and five steps beside the published loop."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastard import losses, methods

from .formulas import assert_formula, labels, logits, nll
from .loops import ALPHA, EPS, STEPS, ascend
from .parity import Case, assert_same_training, gaussian_start, twins

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}


def published_loss(clean, adv, y, beta, floor):
    q, p = F.softmax(adv, 1), F.softmax(clean, 1)
    top = torch.argsort(q, dim=1)[:, -2:]
    wrong = torch.where(top[:, -1] == y, top[:, -2], top[:, -1])
    bce = F.cross_entropy(adv, y) + F.nll_loss(torch.log(1.0001 - q + 1e-12), wrong)
    divergence = F.kl_div(torch.log(q + floor), p, reduction="none").sum(1)
    weight = 1.0000001 - p.gather(1, y[:, None])[:, 0]
    return bce + beta * (divergence * weight).sum() / len(y)


@pytest.mark.parametrize("floor", [0.0, 1e-12])
@pytest.mark.parametrize("beta", [0.0, 5.0])
def test_loss_and_both_gradients_none_of_them_detached(beta, floor):
    y = labels()
    assert_formula(
        lambda clean, adv: losses.mart(clean, adv, y, beta, floor),
        lambda clean, adv: published_loss(clean, adv, y, beta, floor),
        *(0, 1),
        rtol=1e-9,
    )


def test_constant_1_0001_bounds_the_boosted_term():
    adv = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    value = losses.mart(adv, adv, torch.tensor([1]), beta=0.0)
    expected = nll(adv, torch.tensor([1])) - torch.tensor(1e-4, dtype=torch.float64).log()
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    half = losses.mart(adv.bfloat16(), adv.bfloat16(), torch.tensor([1]), beta=0.0)
    assert half.isfinite()


def test_constant_1e_12_bounds_the_divergence_and_stops_its_gradient():
    y = torch.tensor([0])
    clean = torch.tensor([[0.0, 0.0, 0.0]], dtype=torch.float64)
    adv = torch.tensor([[0.0, 0.0, -90.0]], dtype=torch.float64, requires_grad=True)

    def divergence(floor):
        with_it, without = (losses.mart(clean, adv, y, beta, floor) for beta in (1.0, 0.0))
        return with_it - without

    weight = 1.0000001 - 1 / 3
    exactly = 30 + math.log(2) - math.log(3)
    assert divergence(0.0).item() == pytest.approx(weight * exactly)
    assert divergence(1e-12) < 0.4 * divergence(0.0)
    exact = torch.autograd.grad(divergence(0.0), adv)[0]
    floored = torch.autograd.grad(divergence(1e-12), adv)[0]
    assert abs(exact[0, 2]) > 0.1
    assert abs(floored[0, 2]) < 1e-10


def test_gradient_is_finite_where_a_clean_probability_underflows():
    clean = torch.tensor([[0.0, -2000.0]], dtype=torch.float64, requires_grad=True)
    for floor in (0.0, 1e-12):
        loss = losses.mart(clean, logits(0, 1, 2), torch.tensor([0]), 5.0, floor)
        assert torch.autograd.grad(loss, clean)[0].isfinite().all()


@pytest.mark.parametrize("floor", [0.0, 1e-12])
def test_five_steps_equal_the_published_loop(floor):
    def make(dtype):
        student, twin = twins(dtype)

        def by_hand(x, y, epoch):
            twin.eval()
            start = gaussian_start(x)
            x_adv = ascend(x, start, lambda u: F.cross_entropy(twin(u), y))
            twin.train()
            clean = twin(x)
            return x_adv, published_loss(clean, twin(x_adv), y, 5.0, floor)

        method = methods.build("mart", student, log_floor=floor, **ATTACK)
        return Case(method, by_hand, [(student, twin)])

    assert_same_training(make)


def test_official_preset():
    options = methods.build("mart-official", torch.nn.Identity()).options
    assert (options.eps, options.alpha, options.beta) == (0.031, 0.007, 5.0)
    assert (options.log_floor, options.random_start) == (1e-12, "gaussian")
    assert (options.attack_mode, options.noise_device) == ("eval", "cpu")
    recipe = methods.preset("mart-official")
    assert (recipe.lr, recipe.weight_decay, recipe.epochs) == (0.01, 3.5e-3, 120)


def test_bad_input_is_one_sentence():
    z, y = logits(0), labels()
    for arguments, sentence in [((-1.0,), "beta must be"), ((5.0, -1.0), "log_floor must be")]:
        with pytest.raises(ValueError, match=sentence):
            losses.mart(z, z, y, *arguments)
