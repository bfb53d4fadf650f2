"""LBGAT, whose helper is trained along, and HAT, whose helper is asked."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastard import losses, methods

from .formulas import assert_formula, kl, labels, logits, nll
from .loops import ALPHA, EPS, STEPS, ascend
from .parity import Case, assert_same_training, batches, gaussian_start, teacher, twins

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}


def trades_attack(model, x):
    model.eval()
    x_adv = ascend(
        x,
        gaussian_start(x),
        lambda u: F.kl_div(model(u).log_softmax(1), model(x).softmax(1).detach(), reduction="sum"),
    )
    model.train()
    return x_adv


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_lbgat_loss_and_all_three_gradients(beta):
    y = labels()

    def formula(adv, helper, clean):
        mse = ((adv - helper) ** 2).sum() / 35
        return mse + nll(helper, y) + beta * kl(adv, clean).mean()

    assert_formula(
        lambda adv, helper, clean: losses.lbgat(adv, helper, y, clean, beta),
        formula,
        *(0, 1, 2),
        rtol=1e-9,
    )


@pytest.mark.parametrize(("beta", "faithful"), [(6.0, True), (0.0, True), (0.0, False)])
def test_lbgat_five_steps_train_student_and_helper(beta, faithful):
    def make(dtype):
        (student, twin), (helper, helper_twin) = twins(dtype), twins(dtype, seed=7)

        def by_hand(x, y, epoch):
            x_adv = trades_attack(twin, x)
            adv = twin(x_adv)
            clean = twin(x) if beta or faithful else None
            out = helper_twin.train()(x)
            loss = F.mse_loss(adv, out) + F.cross_entropy(out, y)
            if beta:
                p = clean.softmax(1)
                loss = loss + beta * F.kl_div(adv.log_softmax(1), p, reduction="sum") / len(x)
            return x_adv, loss

        method = methods.build("lbgat", student, helper, beta=beta, faithful=faithful, **ATTACK)
        return Case(method, by_hand, [(student, twin), (helper, helper_twin)])

    assert_same_training(make)


def test_helper_belongs_to_the_method():
    student, helper = twins(torch.float64)
    helper.eval().requires_grad_(False)
    method = methods.build("lbgat", student, [helper])
    assert helper.training
    assert method.trains_teachers
    assert method.teachers == ()
    trained = {id(p) for p in method.trainable_parameters()}
    assert trained == {id(p) for net in (student, helper) for p in net.parameters()}
    assert all(p.requires_grad for p in helper.parameters())
    assert set(method.state_dict()) == {f"helper.{name}" for name in helper.state_dict()}
    other = methods.build("lbgat", student, [twins(torch.float64, seed=9)[0]])
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.helper[0].weight, helper[0].weight)
    copied = copy.deepcopy(method)
    assert copied.helper is not helper


def test_lbgat_bad_input():
    z = logits(0)
    with pytest.raises(ValueError, match="clean_logits must be given where beta is above 0"):
        losses.lbgat(z, z, labels())
    with pytest.raises(ValueError, match=r"takes one teacher \(helper\), but was given 0"):
        methods.build("lbgat", nn.Identity())


def test_hat_loss_and_gradients():
    y, far_y = labels(), labels().flip(0)
    assert_formula(
        lambda clean, adv, far: losses.hat(clean, adv, far, y, far_y, 2.5, 0.5),
        lambda clean, adv, far: nll(clean, y) + 2.5 * kl(adv, clean).mean() + 0.5 * nll(far, far_y),
        *(0, 1, 2),
        rtol=1e-9,
    )
    with pytest.raises(ValueError, match="gamma must be at least 0"):
        losses.hat(*[logits(0)] * 3, y, y, gamma=-1)


@pytest.mark.parametrize("h", [2.0, 3.5])
def test_hat_five_steps_its_far_images_not_clipped(h):
    def make(dtype):
        (student, twin), helper = twins(dtype), teacher(dtype)

        def by_hand(x, y, epoch):
            x_adv = trades_attack(twin, x)
            far = x + h * (x_adv - x)
            assert far.max() > 1
            far_y = helper(x_adv).argmax(1)
            clean, adv, helped = twin(x), twin(x_adv), twin(far)
            divergence = F.kl_div(adv.log_softmax(1), clean.softmax(1), reduction="sum") / len(x)
            loss = F.cross_entropy(clean, y) + 2.5 * divergence
            return x_adv, loss + 0.5 * F.cross_entropy(helped, far_y)

        method = methods.build("hat", student, helper, h=h, **ATTACK)
        return Case(method, by_hand, [(student, twin)])

    assert_same_training(make)


def test_hat_recipe_and_helper_in_eval_mode():
    recipe = methods.preset("hat")
    assert (recipe.lr, recipe.epochs, recipe.weight_decay) == (0.21, 50, 5e-4)
    assert recipe.nesterov
    assert (recipe.schedule, recipe.peak) == ("onecycle", 0.25)
    student, helper = twins(torch.float64)
    method = methods.build("hat", student, helper, **ATTACK)
    before = copy.deepcopy(helper.state_dict())
    method(*batches(torch.float64)[0])
    assert method.state_dict() == {}
    assert all(torch.equal(before[name], value) for name, value in helper.state_dict().items())
