"""RSLAD's names against its published behaviour."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastard.compat import rslad
from tests.api.models import batch, small_net
from tests.compat.twins import gaussian, inputs_of, twins
from tests.methods.loops import ascend


def published_inner_loss(model, teacher_logits, x, optimizer, alpha, eps, steps):
    model.eval()
    p = teacher_logits.softmax(1)
    x_adv = ascend(
        x, gaussian(x), lambda u: F.kl_div(model(u).log_softmax(1), p, reduction="sum"),
        eps, alpha, steps)  # fmt: skip
    model.train()
    optimizer.zero_grad()
    return model(x_adv)


def test_logits_gradients_and_side_effects():
    pair = twins()
    teacher_logits = pair.teacher.eval()(pair.x).detach()
    losses = []
    mine, published = pair.optimizers()
    torch.manual_seed(3)
    logits = rslad.rslad_inner_loss(
        pair.ours, teacher_logits, pair.x, pair.y, mine, step_size=0.03, epsilon=0.1,
        perturb_steps=4)  # fmt: skip
    assert all(p.grad is None for p in pair.ours.parameters())
    losses.append(logits)
    torch.manual_seed(3)
    losses.append(
        published_inner_loss(pair.theirs, teacher_logits, pair.x, published, 0.03, 0.1, 4)
    )
    pair.assert_same_step(*(F.cross_entropy(z, teacher_logits.softmax(1)) for z in losses))


def test_images_are_the_published_ones_bit_for_bit():
    x, y, t = batch()
    logits, images = [], []
    for attack in (
        lambda net, sgd: rslad.rslad_inner_loss(net, t, x, y, sgd, engine=False),
        lambda net, sgd: published_inner_loss(net, t, x, sgd, 0.003, 0.031, 10),
    ):
        net = small_net()
        seen = inputs_of(net)
        torch.manual_seed(3)
        logits.append(attack(net, torch.optim.SGD(net.parameters(), lr=0.1)))
        images.append(seen[-1])
    assert torch.equal(*images)
    # The dropout after the attack draws from the same generator: its masks are equal as well.
    assert torch.equal(*logits)


def published_attack(model, x, y, steps, alpha, eps):
    x_adv = (x + torch.zeros_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
        x_adv = (x_adv.detach() + alpha * grad.sign()).clamp(0, 1)
        x_adv = x + (x_adv - x).clamp(-eps, eps)
    return x_adv


def attacked_twice(prepare):
    """Both attacks on networks that `prepare` has put into a mode; images and networks."""
    results, nets = [], []
    x, y, _ = batch()
    for attack in (
        lambda net: rslad.attack_pgd(net, x, y, 3, 0.003, 0.031),
        lambda net: published_attack(net, x, y, 3, 0.003, 0.031),
    ):
        net = small_net()
        net[6].p = 0.0
        prepare(net)
        torch.manual_seed(3)
        results.append(attack(net))
        nets.append(net)
    return results, nets


def test_attack_pgd_returns_images_in_the_current_mode():
    def mixed(net):
        net.train()
        net[4].eval()

    for prepare in (lambda net: net.eval(), lambda net: net.train(), mixed):
        (mine, expected), nets = attacked_twice(prepare)
        # The published code rounds x + (x' - x) once more; a sign may flip where it is rounding.
        assert ((mine - expected).abs() > 1e-6).float().mean() < 0.002
        assert mine.min() >= 0 and (mine - batch()[0]).abs().max() > 0.03
        for (name, a), b in zip(
            nets[0].state_dict().items(), nets[1].state_dict().values(), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4, msg=name)
        flags = [[m.training for m in net.modules()] for net in nets]
        assert flags[0] == flags[1]
        assert all(p.grad is None for p in nets[0].parameters())


def test_star_import_brings_what_the_original_brought():
    names: dict[str, object] = {}
    exec("from fastard.compat.rslad import *", names)
    wanted = {"torch", "nn", "F", "Variable", "optim", "np", "attack_pgd", "rslad_inner_loss"}
    assert wanted == set(names) - {"__builtins__"}
    assert names["F"] is F and names["optim"] is torch.optim
