"""Carlini and Wagner's attacks against hand-written loops, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastard


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 64, 5)
    ).double()


@pytest.fixture(scope="module")
def batch(net) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, net(x).argmax(1)


def by_hand(net, x, y, c, steps, lr, kappa):
    """The published loop with autograd through tanh."""
    w = torch.atanh((2 * x - 1) * 0.999999).requires_grad_()
    origin = (w.detach().tanh() + 1) / 2
    adam = torch.optim.Adam([w], lr=lr)
    best, norm = x.clone(), torch.full((len(x),), torch.inf, dtype=x.dtype)
    for _ in range(steps):
        x_adv = (w.tanh() + 1) / 2
        z = net(x_adv)
        own = z.gather(1, y[:, None])[:, 0]
        other = z.scatter(1, y[:, None], -torch.inf).amax(1)
        size = (x_adv - x).flatten(1).norm(dim=1).detach()
        for i in range(len(x)):
            sure = z[i].detach().clone()
            sure[y[i]] += kappa
            if sure.argmax() != y[i] and size[i] < norm[i]:
                norm[i], best[i] = size[i], x_adv[i].detach()
        loss = ((x_adv - origin) ** 2).sum() + c * (own - other + kappa).clamp(min=0).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return best, norm


@pytest.mark.parametrize(("kappa", "c"), [(0.0, 1.0), (0.2, 10.0)])
def test_cw_l2_is_the_published_loop(net, batch, kappa, c):
    x, y = batch
    best, norm = by_hand(net, x, y, c, 60, 0.02, kappa)
    adv, info = fastard.cw_l2(
        net, x, y, c=c, kappa=kappa, steps=60, lr=0.02, binary_search_steps=1, return_info=True
    )
    assert norm.isfinite().any() and torch.equal(info.found, norm.isfinite())
    torch.testing.assert_close(info.norm, norm, rtol=1e-9, atol=0)
    torch.testing.assert_close(adv, best, rtol=0, atol=1e-9)


def test_what_is_wrong_by_less_than_the_confidence_is_not_found(net, batch):
    x, y = batch
    options = {"c": 10.0, "steps": 60, "lr": 0.02, "binary_search_steps": 1, "return_info": True}
    for targeted, labels in ((False, y), (True, (y + 1) % 5)):
        adv, info = fastard.cw_l2(net, x, labels, kappa=0.2, targeted=targeted, **options)
        z = net(adv).double()
        own = z.gather(1, labels[:, None])[:, 0]
        other = z.scatter(1, labels[:, None], -torch.inf).amax(1)
        margin = own - other if targeted else other - own
        assert info.found.any() and (margin[info.found] >= 0.2).all()
        assert torch.equal(adv[~info.found], x[~info.found])
    wrong = (y + 1) % 5
    same, none = fastard.cw_l2(net, x, wrong, kappa=1e6, **options | {"steps": 3})
    assert torch.equal(same, x) and not none.found.any() and none.norm.isinf().all()


def test_a_search_over_c_finds_smaller_perturbations(net, batch):
    x, y = batch
    options = {"c": 10.0, "steps": 80, "lr": 0.02, "return_info": True}
    _, once = fastard.cw_l2(net, x, y, binary_search_steps=1, **options)
    _, searched = fastard.cw_l2(net, x, y, binary_search_steps=5, **options)
    assert once.found.all() and (searched.norm <= once.norm).all()
    assert (searched.norm < once.norm).any()


def test_targeted_cw_reaches_the_target_and_a_hopeless_one_returns_x(net, batch):
    x, y = batch
    target = (y + 1) % 5
    adv, info = fastard.cw_l2(net, x, target, c=5.0, steps=100, lr=0.02, binary_search_steps=2,
                              targeted=True, return_info=True)  # fmt: skip
    assert info.found.all() and (net(adv).argmax(1) == target).all()
    same, none = fastard.cw_l2(net, x, y, c=0.0, steps=3, binary_search_steps=1, return_info=True)
    assert torch.equal(same, x) and not none.found.any() and none.norm.isinf().all()


def test_cw_linf_is_pgd_on_the_margin(net, batch):
    x, y = (t.float() if t.is_floating_point() else t for t in batch)
    small = net.float()
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    ours = fastard.cw_linf(small, x, y, 0.1, 0.02, 7, generator=generators[0])
    wanted = fastard.pgd(
        small, x, y, 0.1, 0.02, 7, loss="margin", kappa=50.0, generator=generators[1]
    )
    net.double()
    assert torch.equal(ours, wanted)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"c": -1.0}, "c must be at least 0 and finite, but is -1"),
        ({"lr": float("inf")}, "lr must be"),
        ({"steps": 0}, "steps must be"),
        ({"binary_search_steps": 0}, "binary_search_steps must be"),
    ],
)
def test_bad_input_is_one_sentence(net, batch, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        fastard.cw_l2(net, *batch, **options)
