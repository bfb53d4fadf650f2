"""The outer losses against their formulas, written out in fp64 without any op of ours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard import losses


def logits(seed: int, rows: int = 5, classes: int = 7, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, classes, dtype=torch.float64, generator=generator)


def leaves(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.clone().requires_grad_() for t in tensors]


def assert_same(ours, expected, our_leaves, expected_leaves):
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    gradients = (
        torch.autograd.grad(ours, our_leaves),
        torch.autograd.grad(expected, expected_leaves),
    )
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades_is_cross_entropy_plus_divergence_with_both_gradients(beta):
    y = torch.tensor([0, 3, 6, 2, 2])
    a, b = leaves(logits(0), logits(1)), leaves(logits(0), logits(1))
    clean, adv = b
    p = clean.exp() / clean.exp().sum(1, keepdim=True)
    q = adv.exp() / adv.exp().sum(1, keepdim=True)
    expected = -p[torch.arange(5), y].log().mean() + beta * (p * (p / q).log()).sum() / 5
    assert_same(losses.trades(*a, y, beta), expected, a, b)


def test_trades_target_logits_replace_the_clean_ones_as_target_only():
    y = torch.tensor([1, 1, 0, 5, 4])
    a, b = leaves(*map(logits, (0, 1, 2))), leaves(*map(logits, (0, 1, 2)))
    clean, adv, target = b
    divergence = F.kl_div(
        adv.log_softmax(1), target.log_softmax(1), log_target=True, reduction="sum"
    )
    expected = F.cross_entropy(clean, y) + 6 * divergence / 5
    assert_same(losses.trades(a[0], a[1], y, target_logits=a[2]), expected, a, b)


def test_trades_gradient_is_finite_where_a_target_probability_underflows():
    clean = torch.tensor([[500.0, -500.0, 0.0]], requires_grad=True)
    adv = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    losses.trades(clean, adv, torch.tensor([0])).backward()
    assert clean.grad.isfinite().all()
    assert adv.grad.isfinite().all()


@pytest.mark.parametrize(("reduction", "divisor"), [("mean", 35), ("batchmean", 5), ("sum", 1)])
@pytest.mark.parametrize(("floor", "scale"), [(1e-5, 1.0), (1e-5, 10.0), (0.0, 1.0)])
def test_rslad_follows_the_published_formula(reduction, divisor, floor, scale):
    a, b = leaves(logits(0), logits(1)), leaves(logits(0), logits(1))
    teacher = logits(2)
    p = teacher.softmax(1)

    def divergence(student):
        # The published expression, term by term: -a * b + log(b + 1e-5) * b.
        return (-student.log_softmax(1) * p + (p + floor).log() * p).sum() * scale / divisor

    expected = 5 / 6 * divergence(b[0]) + 1 / 6 * divergence(b[1])
    ours = losses.rslad(*a, teacher, scale=scale, reduction=reduction, log_floor=floor)
    assert_same(ours, expected, a, b)


def test_rslad_defaults_are_the_published_code():
    adv, clean, teacher = map(logits, (0, 1, 2))
    written_out = losses.rslad(adv, clean, teacher, 5 / 6, 1.0, "mean", 1e-5)
    assert torch.equal(losses.rslad(adv, clean, teacher), written_out)


def test_rslad_alpha_weighs_the_adversarial_term():
    adv, clean, teacher = map(logits, (0, 1, 2))
    only_adv = losses.rslad(adv, clean, teacher, alpha=1.0)
    only_clean = losses.rslad(adv, clean, teacher, alpha=0.0)
    half = losses.rslad(adv, clean, teacher, alpha=0.5)
    assert only_adv != only_clean
    torch.testing.assert_close(half, (only_adv + only_clean) / 2)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda z, y: losses.trades(z, z, y, beta=-1), "beta must be at least 0, but is -1"),
        (lambda z, y: losses.trades(z, z[:, :3], y), r"\[5, 7\].*\[5, 3\]|\[5, 3\].*\[5, 7\]"),
        (lambda z, y: losses.rslad(z, z, z, alpha=1.5), "alpha must lie between 0 and 1"),
        (lambda z, y: losses.rslad(z, z, z, reduction="avg"), "unknown reduction 'avg'"),
        (lambda z, y: losses.rslad(z, z, z[:, :3]), r"\[5, 3\]"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        call(logits(0), torch.zeros(5, dtype=torch.int64))
    assert "\n" not in str(raised.value)
