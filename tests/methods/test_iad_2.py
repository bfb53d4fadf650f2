"""IAD-II and AKD2, which it is during its warm-up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastard import losses, methods

from .formulas import assert_formula, kl, labels, logits, nll
from .loops import ALPHA, EPS, STEPS, ascend
from .parity import Case, assert_same_training, teacher, twins, uniform_start

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}


@pytest.mark.parametrize("t", [1.0, 2.0])
def test_losses_and_gradients(t):
    y, robust, standard = labels(), logits(3), logits(4)
    w = torch.tensor([0.1, 0.9, 0.5, 0.3, 1.0], dtype=torch.float64)

    def formula(adv, clean):
        first = w * kl(adv / t, robust / t) + (1 - w) * kl(adv, clean)
        second = kl(adv / t, standard / t)
        return 0.3 * nll(adv, y) + t * t * (0.5 * first.mean() + 0.2 * second.mean())

    assert_formula(
        lambda adv, clean: losses.iad_2(adv, clean, robust, standard, y, w, 0.5, 0.2, t),
        formula,
        *(0, 1),
        rtol=1e-9,
    )

    def akd2_formula(adv):
        # The authors' own form: soft cross entropies, whose gradient is the divergences'.
        q = (adv / t).log_softmax(1)
        terms = []
        for z in (robust / t, standard / t):
            soft, entropy = (-(z.softmax(1) * v).sum(1).mean() for v in (q, z.log_softmax(1)))
            terms.append(t * t * (soft - entropy))
        return 0.3 * nll(adv, y) + 0.6 * terms[0] + 0.1 * terms[1]

    assert_formula(
        lambda adv: losses.akd2(adv, robust, standard, y, 0.3, 0.6, 0.1, t),
        akd2_formula,
        0,
        rtol=1e-9,
    )


def published_loss(
    student, robust, standard, x, x_adv, y, epoch, begin, t=1.0, weights=(0.25, 0.5, 0.25)
):
    adv = student(x_adv)
    q = F.log_softmax(adv / t, 1)
    guide = robust(x_adv).detach()
    first = F.kl_div(q, F.softmax(guide / t, 1), reduction="none").sum(1)
    second = F.kl_div(q, F.softmax(standard(x_adv).detach() / t, 1), reduction="none").sum(1)
    if epoch - 1 >= begin:
        w = guide.softmax(1).gather(1, y[:, None])[:, 0] ** 0.1
        own = F.kl_div(adv.log_softmax(1), student(x).softmax(1), reduction="none").sum(1)
        first = first * w + own * (1 - w)
    kd = weights[1] * first.mean() + weights[2] * second.mean()
    return weights[0] * F.cross_entropy(adv, y) + t * t * kd


def make(dtype, name, *, train, begin, options, published=None):
    student, twin = twins(dtype)
    robust, standard = teacher(dtype), teacher(dtype, seed=5)

    def by_hand(x, y, epoch):
        twin.train(train)
        start = uniform_start(x)
        if options.get("clip_start"):
            start = start.clamp(0, 1)
        x_adv = ascend(x, start, lambda u: F.cross_entropy(twin(u), y, reduction="sum"))
        twin.train()
        return x_adv, published_loss(
            twin, robust, standard, x, x_adv, y, epoch, begin, **(published or {})
        )

    mode = "train" if train else "eval"
    method = methods.build(name, student, [robust, standard], attack_mode=mode, **ATTACK, **options)
    return Case(method, by_hand, [(student, twin)])


@pytest.mark.parametrize("train", [True, False])
def test_iad_2_across_the_end_of_its_warm_up(train):
    assert_same_training(
        lambda dtype: make(dtype, "iad-2", train=train, begin=40, options={}), [39, 40, 41, 42, 200]
    )


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({}, {}),
        (
            methods.preset("akd2-kdswa").options_for() | {"attack_mode": "train"},
            {"t": 2.0, "weights": (0.3, 0.6, 0.1)},
        ),
    ],
)
def test_akd2_equals_both_published_loops(options, published):
    options = {k: v for k, v in options.items() if k != "attack_mode"}
    assert_same_training(
        lambda dtype: make(
            dtype, "akd2", train=True, begin=1000, options=options, published=published
        )
    )


def test_teachers_have_roles():
    for name in ("iad-2", "akd2"):
        with pytest.raises(ValueError, match=r"takes 2 teachers \(robust, then standard\), but"):
            methods.build(name, nn.Identity(), nn.Identity())


def test_weights_and_presets():
    with pytest.raises(ValueError, match=r"standard_weight must be a number from 0 to 0.5"):
        methods.build("iad-2", nn.Identity(), [nn.Identity()] * 2, standard_weight=0.75)
    with pytest.raises(ValueError, match=r"robust_weight \+ standard_weight must lie between"):
        losses.iad_2(*[logits(0)] * 4, labels(), torch.ones(5), 0.7, 0.5)
    with pytest.raises(ValueError, match="label_weight must be at least 0"):
        losses.akd2(*[logits(0)] * 3, labels(), -1.0)
    with pytest.raises(ValueError, match="option warm_up must be an integer of at least 0"):
        methods.build("iad-2", nn.Identity(), [nn.Identity()] * 2, warm_up=-1)
    iad, akd2, original = (
        methods.build(name, nn.Identity(), [nn.Identity()] * 2).options
        for name in ("iad-2-official", "akd2-iad", "akd2-kdswa")
    )
    assert (iad.robust_weight, iad.standard_weight, iad.warm_up) == (0.5, 0.25, 40)
    assert iad.attack_mode == akd2.attack_mode == original.attack_mode == "train"
    assert (akd2.label_weight, akd2.robust_weight, akd2.standard_weight) == (0.25, 0.5, 0.25)
    kdswa = methods.preset("akd2-kdswa")
    # Its code begins after epoch 55, counted from 0.
    assert (kdswa.student, kdswa.average, kdswa.average_start) == ("preactresnet18", "swa", 56)
    assert (original.label_weight, original.robust_weight, original.temperature) == (0.3, 0.6, 2.0)
