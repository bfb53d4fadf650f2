"""`fab` as users call it: the smallest norm, a bound, what it leaves and refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastard
from tests.api.models import batch, small_net
from tests.api.test_state import assert_same, snapshot

EPS = {"Linf": 0.1, "L2": 1.5, "L1": 25.0}
ORDER = {"Linf": torch.inf, "L2": 2, "L1": 1}


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm, dual", [("Linf", 1), ("L2", 2), ("L1", torch.inf)])
def test_a_linear_model_is_left_at_its_boundary(norm, dual, targeted):
    """The distance to the nearest of three half-spaces is known."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    x = 0.5 + 0.05 * torch.randn(6, 3, 4, 4).double().clamp(-1, 1)
    z, w = net(x).detach(), net[1].weight.detach()
    y = z.argmax(1)
    gaps = z.gather(1, y[:, None]) - z
    slopes = (w[y][:, None] - w).norm(dual, dim=2)
    distance = (gaps / slopes).nan_to_num(torch.inf).amin(1)
    assert (distance < (3 if norm == "L2" else 0.4 if norm == "Linf" else 0.45 * 9)).all()
    adv, info = fastard.fab(
        net, x, y, norm, steps=25, targeted=targeted, n_restarts=2, return_info=True,
        generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert not info.robust.any()
    torch.testing.assert_close(info.norm, (adv - x).flatten(1).norm(ORDER[norm], dim=1))
    reached = info.norm / distance
    assert (reached > 1 - 1e-9).all()
    # Within the box L1 may have to go round.
    assert (reached < (1.6 if norm == "L1" else 1.02)).all()
    assert info.iterations == 25 * 2 * (2 if targeted else 1)


@pytest.mark.parametrize("norm", EPS)
def test_a_bound_a_mean_and_no_trace(norm):
    net, (x, _, _) = small_net(5), batch(8, side=8)
    given = {"mean": (0.5,) * 3, "std": (0.3, 0.2, 0.25)}
    normalised = (x - torch.tensor(given["mean"]).view(3, 1, 1)) / torch.tensor(given["std"]).view(
        3, 1, 1
    )
    y = net.eval()(normalised).argmax(1)
    y[0] = (y[0] + 1) % 5
    net.train()
    before, images = snapshot(net), x.clone()
    adv, info = fastard.fab(
        net, x, y, norm, EPS[norm], 10, n_restarts=2, targeted=True, return_info=True,
        generator=torch.Generator().manual_seed(1), **given)  # fmt: skip
    assert_same(before, snapshot(net), rng=True)
    assert torch.equal(x, images) and adv.min() >= 0 and adv.max() <= 1
    found = info.norm.isfinite()
    assert found[1:].any() and not found.all() or found.all()
    sizes = (adv - x).double().flatten(1).norm(ORDER[norm], dim=1)
    assert (sizes <= EPS[norm] * (1 + 1e-5)).all()
    assert torch.equal(adv[~found], x[~found]) and info.norm[0] == 0 and torch.equal(adv[0], x[0])
    assert torch.equal(info.robust, ~found)
    free, more = fastard.fab(
        net, x, y, norm, None, 10, targeted=True, return_info=True, **given)  # fmt: skip
    assert (more.norm[found] <= EPS[norm] * (1 + 1e-5)).all() and not more.robust[found].any()


def test_dtypes_and_formats():
    net, (x, _, _) = small_net(5).eval(), batch(4, side=8)
    y = net(x).argmax(1)
    last = x.to(memory_format=torch.channels_last)
    plain = fastard.fab(net, x, y, eps=0.2, steps=5)
    adv = fastard.fab(net, last, y, eps=0.2, steps=5)
    assert adv.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(adv.contiguous(), plain, rtol=0, atol=1e-5)
    half = fastard.fab(net, x.bfloat16(), y, eps=0.2, steps=5)
    assert half.dtype == torch.bfloat16
    assert ((half - x.bfloat16()).float().abs() <= 0.2 + 1e-6).all()
    assert fastard.fab(net, x[:0], y[:0]).shape == (0, 3, 8, 8)


BAD = [
    (ValueError, "unknown norm 'L7'", {"norm": "L7"}),
    (ValueError, "eps must not be negative", {"eps": -0.1}),
    (TypeError, "eps must be a number", {"eps": "0.1"}),
    (ValueError, "steps must be at least 1", {"steps": 0}),
    (ValueError, "beta must not be negative", {"beta": -1.0}),
    (ValueError, "n_target_classes must be at least 1", {"n_target_classes": 0}),
    (ValueError, "x must lie in", {"x": torch.full((4, 3, 8, 8), 2.0)}),
    (TypeError, "y must hold integer", {"y": torch.zeros(4)}),
    (ValueError, "y", {"y": torch.full((4,), 5)}),
]  # fmt: skip


@pytest.mark.parametrize("error, words, changed", BAD, ids=[row[1][:20] for row in BAD])
def test_bad_input_is_one_sentence(error, words, changed):
    net, (x, _, _) = small_net(5).eval(), batch(4, side=8)
    given = {"x": x, "y": torch.zeros(4, dtype=torch.int64), "steps": 2, **changed}
    with pytest.raises(error, match=words) as caught:
        fastard.fab(net, **given)
    assert "\n" not in str(caught.value)
