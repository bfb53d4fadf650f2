"""The robust_overfitting family's attack_pgd against its published behaviour."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard.compat import robust_overfitting as rice
from tests.compat.twins import twins

MEAN, STD = 0.48, 0.25


def into_box(delta, x):
    return torch.max(torch.min(delta, 1 - x), 0 - x)


def published(model, x, y, eps, alpha, steps, restarts, norm, early_stop, mixup, y_a, y_b, lam):
    """In this test's words: one channel, so MEAN and STD are numbers."""

    def run(delta):
        return model((x + delta - MEAN) / STD)

    def criterion(z, reduction="mean"):
        first, second = (F.cross_entropy(z, v, reduction=reduction) for v in (y_a, y_b))
        return lam * first + (1 - lam) * second

    max_loss, max_delta = torch.zeros(len(y)).to(x), torch.zeros_like(x)
    for _ in range(restarts):
        delta = torch.zeros_like(x)
        if norm == "l_inf":
            delta.uniform_(-eps, eps)
        else:
            n = delta.normal_().flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            delta *= torch.zeros_like(n).uniform_(0, 1) / n * eps
        delta = into_box(delta, x)
        for _ in range(steps):
            delta.requires_grad_()
            z = run(delta)
            index = (z.argmax(1) == y) if early_stop else torch.ones_like(y, dtype=torch.bool)
            if not index.any():
                break
            loss = criterion(run(delta)) if mixup else F.cross_entropy(z, y)
            (grad,) = torch.autograd.grad(loss, delta)
            with torch.no_grad():
                d, g = delta[index], grad[index]
                if norm == "l_inf":
                    d = (d + alpha * g.sign()).clamp(-eps, eps)
                else:
                    g = g / (g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-10)
                    d = (d + alpha * g).renorm(2, 0, eps)
                delta = delta.detach().clone()
                delta[index] = into_box(d, x[index])
        with torch.no_grad():
            z = run(delta)
            rows = criterion(z, "none") if mixup else F.cross_entropy(z, y, reduction="none")
        higher = rows >= max_loss
        max_delta[higher] = delta.detach()[higher]
        max_loss = torch.max(max_loss, rows)
    return max_delta


@pytest.mark.parametrize("mode", ["eval", "train", "mixed"])
@pytest.mark.parametrize("norm, eps, alpha", [("l_inf", 0.1, 0.03), ("l_2", 0.8, 0.3)])
@pytest.mark.parametrize("early_stop, mixup", [(False, False), (True, False), (False, True)])
def test_delta_modes_and_statistics(mode, norm, eps, alpha, early_stop, mixup):
    pair = twins()
    for net in (pair.ours, pair.theirs):
        net.train(mode != "eval")
        net[1].train(mode == "train")
    y_b = pair.y.roll(1)
    rest = (eps, alpha, 4, 2, norm, early_stop, mixup, pair.y, y_b, 0.3)
    torch.manual_seed(3)
    delta = rice.attack_pgd(pair.ours, pair.x, pair.y, *rest, mean=[MEAN], std=[STD])
    after = torch.get_rng_state()
    torch.manual_seed(3)
    expected = published(pair.theirs, pair.x, pair.y, *rest)
    assert torch.equal(after, torch.get_rng_state())
    assert delta.abs().max() > 0.05 and not delta.requires_grad
    # renorm divides by the norm + 1e-7, and mean and std are kept in fp32.
    torch.testing.assert_close(delta, expected, rtol=0, atol=1e-6)
    flags = [[m.training for m in net.modules()] for net in (pair.ours, pair.theirs)]
    assert flags[0] == flags[1]
    for a, b in zip(pair.ours.buffers(), pair.theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in pair.ours.parameters())


def test_fp32_is_the_published_delta_bit_for_bit():
    pair = twins()
    net, x = pair.ours.float().eval(), pair.x.float()[:4]
    y = pair.y[:4]
    rest = (8 / 255, 2 / 255, 5, 1, "l_inf")
    results = []
    for attack in (
        lambda: rice.attack_pgd(net, x, y, *rest, mean=[MEAN], std=[STD], engine=False),
        lambda: published(net, x, y, *rest, False, False, None, None, None),
    ):
        torch.manual_seed(3)
        results.append(attack())
    assert torch.equal(*results)


def test_cifar10s_statistics_are_the_scripts_own():
    seen = []

    class Net(torch.nn.Module):
        def forward(self, v):
            seen.append(v.detach())
            return v.flatten(1)[:, :3]

    x = torch.rand(2, 3, 4, 4)
    rice.attack_pgd(Net(), x, torch.tensor([0, 1]), 0.0, 0.0, 1, 1, "l_inf", engine=False)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (rice.cifar10_mean, rice.cifar10_std))
    torch.testing.assert_close(seen[0], (x - mean) / std)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"norm": "Linf"}, "unknown norm 'Linf' .*l_inf"),
        ({"attack_iters": 0}, "attack_iters must be at least 1"),
        ({"mixup": True}, "mixup=True needs y_a, y_b and lam"),
    ],
)
def test_bad_input(change, sentence):
    pair = twins()
    given = {"epsilon": 0.1, "alpha": 0.1, "attack_iters": 1, "restarts": 1, "norm": "l_inf"}
    with pytest.raises(ValueError, match=sentence):
        rice.attack_pgd(pair.ours, pair.x, pair.y, **{**given, **change}, mean=[MEAN], std=[STD])
