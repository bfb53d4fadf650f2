"""Bad input: one sentence, an exception of the fitting type, nothing changed."""

# ruff: noqa: E501 - one row of a table, one line

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import fastard
from tests.api.models import batch, small_net

NET = small_net()
X, Y, T = batch(4)


def kl(x=X, t=T, model=NET, **options):
    return fastard.pgd_kl(model, x, t, **options)


def ce(x=X, y=Y, model=NET, **options):
    return fastard.pgd_ce(model, x, y, **options)


def nan_at(t):
    t = t.clone()
    t.view(-1)[3] = float("nan")
    return t


class TwoOutputs(nn.Module):
    def forward(self, x):
        return x, x


class NoGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = NET

    @torch.no_grad()
    def forward(self, x):
        return self.net(x)


class Flat(nn.Module):
    def forward(self, x):
        return x.flatten(1).sum(1)


BAD = {
    "x-outside": (ValueError, r"x must lie in \[clip_min, clip_max\] = \[0, 1\]", lambda: kl(X * 3 - 1)),
    "x-outside-own-box": (ValueError, r"= \[-1, 0.5\]", lambda: kl(clip_min=-1, clip_max=0.5)),
    "x-nan": (ValueError, "x must be finite", lambda: kl(nan_at(X))),
    "x-inf": (ValueError, "x must be finite", lambda: kl(X / 0)),
    "x-integer": (TypeError, "x must be float32, .* but is uint8", lambda: kl((X * 255).byte())),
    "x-no-tensor": (TypeError, "x must be a tensor, but is a ndarray", lambda: kl(X.numpy())),
    "x-1d": (ValueError, "x must be a batch of images", lambda: kl(X.flatten())),
    "devices": (ValueError, "teacher_logits must be on x's device cpu", lambda: kl(t=T.to("meta"))),
    "devices-y": (ValueError, "y must be on x's device cpu", lambda: ce(y=Y.to("meta"))),
    "batch": (ValueError, r"teacher_logits must be logits \[4, classes\]", lambda: kl(t=T[:3])),
    "batch-y": (ValueError, r"y must have one label per sample \[4\]", lambda: ce(y=Y[:3])),
    "classes": (ValueError, r"one column per class of the model \(10\), but have 7", lambda: kl(t=T[:, :7])),
    "pair-classes": (ValueError, "equal class counts, but have 7 and 10",
                     lambda: fastard.pgd_kl_pair(NET, small_net(7), X)),
    "labels-high": (ValueError, r"labels must lie in \[0, 10\)", lambda: ce(y=Y + 9)),
    "labels-negative": (ValueError, r"labels must lie in \[0, 10\)", lambda: ce(y=Y - 10)),
    "labels-float": (TypeError, "y must hold integer class indices", lambda: ce(y=Y.float())),
    "labels-one-hot": (ValueError, "y must have one label per sample", lambda: ce(y=nn.functional.one_hot(Y, 10))),
    "teacher-nan": (ValueError, "teacher_logits must be finite", lambda: kl(t=nan_at(T))),
    "teacher-inf": (ValueError, "teacher_logits must be finite", lambda: kl(t=T - float("inf"))),
    "teacher-integer": (TypeError, "takes a teacher's logits, but target is int64", lambda: kl(t=T.long())),
    "labels-for-kl": (TypeError, "for labels give loss='ce'", lambda: fastard.PGD(NET)(X, Y)),
    "no-gradient": (ValueError, "do not depend on x through autograd", lambda: ce(model=NoGradient())),
    "ignores-x": (ValueError, "do not depend on x", lambda: ce(model=lambda v: torch.zeros(len(v), 10))),
    "logits-nan": (ValueError, "the model's logits must be finite", lambda: ce(model=lambda v: v.flatten(1)[:, :10] * float("nan"))),
    "logits-inf": (ValueError, "the model's logits must be finite", lambda: kl(model=lambda v: v.flatten(1)[:, :10] + float("inf"))),
    "pair-nan": (ValueError, "the model's logits must be finite", lambda: fastard.pgd_kl_pair(
        NET, lambda v: v.flatten(1)[:, :10] * float("nan"), X)),
    "pair-itself": (ValueError, "needs a teacher that is not the student", lambda: fastard.pgd_kl_pair(NET, NET, X, mode="train")),
    "mean-nan": (ValueError, "mean must be finite", lambda: kl(mean=float("nan"), std=1.0)),
    "mix": (ValueError, r"mix must lie in \[0, 1\]", lambda: fastard.pgd(NET, X, T, loss="mixture", labels=Y, mix=1.5)),
    "kappa-nan": (ValueError, "kappa must be finite", lambda: fastard.pgd(NET, X, Y, loss="margin", kappa=float("nan"))),
    "temperature-none": (TypeError, "temperature must be a number", lambda: kl(temperature=None)),
    "clip-none": (TypeError, "clip_max must be a number", lambda: kl(clip_max=None)),
    "noise-device": (ValueError, "noise_device must name a device", lambda: kl(noise_device="banana")),
    "generator": (TypeError, "generator must be a torch.Generator", lambda: kl(generator=3)),
    "start-one": (ValueError, "random_start must be True, False", lambda: kl(random_start=1)),
    "scalar-loss-restarts": (ValueError, "one value per sample .* where n_restarts", lambda: fastard.pgd(
        NET, X, Y, loss=nn.functional.cross_entropy, n_restarts=2)),
    "eps-negative": (ValueError, "eps must be finite and not negative, but is -0.1", lambda: kl(eps=-0.1)),
    "eps-nan": (ValueError, "eps must be finite", lambda: kl(eps=float("nan"))),
    "eps-length": (ValueError, "eps must be a number or .* one per sample", lambda: kl(eps=torch.ones(3))),
    "eps-tensor-negative": (ValueError, "eps must be finite and not negative, but its values span",
                            lambda: kl(eps=-torch.ones(4))),
    "alpha-negative": (ValueError, "alpha must be finite and not negative", lambda: kl(alpha=-1)),
    "alpha-length": (ValueError, "alpha must be a number or", lambda: kl(alpha=torch.ones(4, 2))),
    "alpha-text": (TypeError, "alpha must be a number or a tensor", lambda: kl(alpha="2/255")),
    "steps-0": (ValueError, "steps must be at least 1, but is 0", lambda: kl(steps=0)),
    "steps-float": (TypeError, "steps must be an integer", lambda: kl(steps=10.0)),
    "norm": (ValueError, "unknown norm 'L3'.*known: Linf, L2, L1", lambda: kl(norm="L3")),
    "loss": (ValueError, r"unknown loss 'dlrr' \(did you mean 'dlr'\?\); known: kl, ce",
             lambda: fastard.pgd(NET, X, Y, loss="dlrr")),
    "start": (ValueError, "random_start must be True, False", lambda: kl(random_start="normal")),
    "restarts": (ValueError, "n_restarts must be at least 1", lambda: kl(n_restarts=0)),
    "restarts-fixed": (ValueError, "needs a random start", lambda: kl(n_restarts=2, random_start=False)),
    "mode": (ValueError, "mode must be 'eval' or 'train'", lambda: kl(mode="training")),
    "bn-stats": (ValueError, "bn_stats must be 'update' or 'frozen'", lambda: kl(bn_stats="keep")),
    "precision": (ValueError, "precision must be None or one of fp32", lambda: kl(precision="half")),
    "box": (ValueError, "clip_min must be below clip_max", lambda: kl(clip_min=1, clip_max=0)),
    "mean-alone": (ValueError, "mean and std go together", lambda: kl(mean=(0.5,) * 3)),
    "mean-length": (ValueError, "mean must have one value per channel", lambda: kl(mean=(0.5,), std=(1,) * 3)),
    "std-zero": (ValueError, "std must be positive", lambda: kl(mean=(0.5,) * 3, std=(1, 0, 1))),
    "model-tuple": (TypeError, "the model must return a tensor of logits .*, but returned a tuple",
                    lambda: kl(model=TwoOutputs())),
    "model-1d": (ValueError, r"the model must return logits \[4, classes\], but returned shape \[4\]",
                 lambda: kl(model=Flat())),
    "model-none": (TypeError, "model must be callable, but is a NoneType", lambda: kl(model=None)),
    "mixture-no-labels": (ValueError, "loss 'mixture' needs labels=", lambda: fastard.pgd(NET, X, T, loss="mixture")),
    "dlr-classes": (ValueError, "loss 'dlr' needs at least 3 classes, not 2",
                    lambda: fastard.pgd(small_net(2), X, Y % 2, loss="dlr")),
    "loss-returns": (ValueError, "loss must return a scalar or one value per sample",
                     lambda: fastard.pgd(NET, X, Y, loss=lambda z, y: z)),
    "loss-constant": (ValueError, "loss must depend on the logits",
                      lambda: fastard.pgd(NET, X, Y, loss=lambda z, y: torch.zeros(4))),
    "unknown-option": (TypeError, "pgd_kl takes no keyword 'epsilon'; did you mean 'eps'",
                       lambda: kl(epsilon=0.1)),
    "option-typo": (TypeError, "pgd_ce takes no keyword 'step'; did you mean 'steps'",
                    lambda: fastard.pgd_ce(NET, X, Y, step=3)),
    "option-elsewhere": (TypeError, "pgd_ce takes no keyword 'loss'",
                         lambda: fastard.pgd_ce(NET, X, Y, loss="kl")),
    "fgsm-steps": (TypeError, "fgsm takes no keyword 'steps'",
                   lambda: fastard.fgsm(NET, X, Y, steps=2)),
    "cw-option": (TypeError, "cw_linf takes no keyword 'kapa'; did you mean 'kappa'",
                  lambda: fastard.cw_linf(NET, X, Y, kapa=2.0)),
}  # fmt: skip


@pytest.mark.parametrize("error, words, call", BAD.values(), ids=BAD)
def test_one_sentence_and_nothing_changed(error, words, call):
    before = {k: v.clone() for k, v in NET.state_dict().items()}
    flags = [m.training for m in NET.modules()]
    images = X.clone()
    with pytest.raises(error, match=words) as caught:
        call()
    message = str(caught.value).strip()
    assert "\n" not in message and (message.endswith(".") or error is TypeError)
    assert torch.equal(X, images)
    assert [m.training for m in NET.modules()] == flags
    assert all(torch.equal(v, NET.state_dict()[k]) for k, v in before.items())


def test_no_random_numbers_are_consumed_by_a_refusal():
    for name in ("classes", "labels-high", "model-tuple", "x-nan", "loss-constant"):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        with pytest.raises((ValueError, TypeError)):
            BAD[name][2]()
        assert torch.equal(torch.get_rng_state(), before), name


def test_probabilities_instead_of_logits_warn():
    with pytest.warns(UserWarning, match="look like probabilities"):
        kl(t=T.softmax(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kl()


def test_a_model_in_train_mode_is_handled():
    net = small_net()
    assert net.training
    torch.manual_seed(1)
    got = fastard.pgd_kl(net, X, T)
    torch.manual_seed(1)
    assert torch.equal(got, fastard.pgd_kl(net.eval(), X, T))


def test_debug_checks_every_call():
    from fastard import settings

    key = ("shape", "dtype", "cuda")
    assert settings.check_values(NET, key, "cuda")
    assert not settings.check_values(NET, key, "cuda")
    with fastard.debug():
        assert settings.check_values(NET, key, "cuda")
    assert not settings.check_values(NET, key, "cuda")
    assert settings.check_values(NET, key, "cpu")


def test_a_radius_in_other_units_is_warned_about():
    with pytest.warns(UserWarning, match="eps is 8 but images span 1: .* such as 8/255"):
        fastard.pgd_ce(NET, X, Y, eps=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastard.pgd_ce(NET, X, Y, eps=1.0)
        fastard.pgd_ce(NET, X, Y, eps=8.0, norm="L2")
        fastard.pgd_ce(NET, 255 * X, Y, eps=8, clip_max=255)
