"""fp32 Linf results follow the published loops step for step, from the same seeds."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import fastard
from benchmarks import published
from fastard import ops
from fastard.engine import InputGradient, Program, RowLoss
from fastard.kinds import LossKind
from tests.api.models import batch, small_net


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_rslad(steps):
    net, (x, _, t) = small_net(), batch()
    torch.manual_seed(5)
    wanted = published.rslad(net, t, x, steps=steps)
    torch.manual_seed(5)
    got = fastard.pgd_kl(net, x, t, steps=steps, noise_device="cpu", engine=False)
    assert torch.equal(got, wanted)


def own_logits(net, x):
    net.eval()
    with torch.no_grad():
        logits = net(x)
    net.train()
    return logits


def test_trades_from_the_same_point():
    """KL to the model's own logits starts at 1e-6: where its gradient is rounding, signs are too.

    So each of the ten steps is held, from the published loop's point, against fp64: fastard's
    signs differ from the exact ones no more often than the published fp32 loop's do.
    """
    net, (x, _, _) = small_net(), batch()
    exact, target = copy.deepcopy(net).double(), own_logits(net, x)
    ours = theirs = 0.0
    for steps in range(10):
        torch.manual_seed(5)
        point = published.trades(net, x, steps=steps) if steps else x + 0.001 * torch.randn(x.shape)
        net.eval()
        signs = []
        for model, dtype in ((exact.eval(), torch.float64), (net, torch.float32)):
            leaf = point.to(dtype).requires_grad_()
            q, p = model(leaf).log_softmax(1), model(x.to(dtype)).softmax(1)
            kl = F.kl_div(q, p, reduction="sum")
            signs.append(torch.autograd.grad(kl, leaf)[0].sign())
        gradient = InputGradient(Program(net), RowLoss(LossKind.kl, target))
        mine = gradient(point)[1].sign()
        ours += (mine != signs[0]).float().mean().item() / 10
        theirs += (signs[1] != signs[0]).float().mean().item() / 10
        net.train()
    assert ours <= 1.2 * theirs + 1e-4
    assert ours < 0.003


def test_trades_reaches_the_published_loss():
    net, (x, _, _) = small_net(), batch()
    target = own_logits(net, x)
    torch.manual_seed(5)
    wanted = published.trades(net, x)
    torch.manual_seed(5)
    got = fastard.pgd_kl(net, x, target, 0.031, 0.007, engine=False)
    losses = [ops.logit_loss(own_logits(net, v), target)[0].mean().item() for v in (got, wanted)]
    assert losses[0] >= 0.995 * losses[1]


@pytest.mark.parametrize("steps", [1, 10])
def test_madry(steps):
    net, (x, y, _) = small_net(), batch()
    eps = 8 / 255
    torch.manual_seed(5)
    start = (x + (torch.rand(x.shape) * 2 * eps - eps)).clamp(0, 1)
    wanted = published.madry(net, x, y, start, steps=steps)
    torch.manual_seed(5)
    assert torch.equal(fastard.pgd_ce(net, x, y, steps=steps, engine=False), wanted)


def test_adaad():
    student, teacher, (x, _, _) = small_net(), small_net(seed=1), batch()
    torch.manual_seed(5)
    wanted = published.adaad(student, teacher, x)
    torch.manual_seed(5)
    got = fastard.pgd_kl_pair(student, teacher, x, engine=False)
    # kl_div's gradient in the target rounds otherwise than the fused one: a sign may flip where
    # the gradient is nearly 0, and one flipped pixel moves the next step's input.
    assert (got != wanted).float().mean() < 0.002


def test_fgsm():
    net, (x, y, _) = small_net().eval(), batch()
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(net(leaf), y), leaf)
    wanted = (x + 8 / 255 * grad.sign()).clamp(0, 1)
    assert torch.equal(fastard.fgsm(net, x, y), wanted)


def test_a_callable_loss_is_the_named_one():
    net, (x, y, _) = small_net(), batch()
    torch.manual_seed(5)
    named = fastard.pgd(net, x, y, loss="ce")
    for reduction in ("sum", "none"):
        torch.manual_seed(5)
        mine = fastard.pgd(
            net, x, y, loss=lambda z, y, r=reduction: F.cross_entropy(z, y, reduction=r)
        )
        assert (mine != named).float().mean() < 0.002


def test_noise_draws_are_the_documented_ones():
    net, (x, y, t) = small_net(), batch()
    for call, draw in (
        (lambda: fastard.pgd_kl(net, x, t, steps=1), lambda: torch.randn(x.shape)),
        (lambda: fastard.pgd_ce(net, x, y, steps=1), lambda: torch.rand(x.shape)),
        (lambda: fastard.fgsm(net, x, y), lambda: None),
        (lambda: fastard.pgd_ce(net, x, y, steps=1, norm="L2"),
         lambda: (torch.randn(x.shape), torch.rand(len(x)))),
        (lambda: fastard.pgd_ce(net, x, y, steps=1, norm="L1"), lambda: torch.randn(x.shape)),
    ):  # fmt: skip
        states = []
        for action in (call, draw):
            torch.manual_seed(9)
            action()
            states.append(torch.get_rng_state())
        assert torch.equal(*states)


def test_a_private_generator_leaves_the_global_one():
    net, (x, _, t) = small_net(), batch()
    torch.manual_seed(3)
    wanted = fastard.pgd_kl(net, x, t)
    before = torch.get_rng_state()
    g = torch.Generator().manual_seed(3)
    assert torch.equal(fastard.pgd_kl(net, x, t, generator=g), wanted)
    assert torch.equal(torch.get_rng_state(), before)
