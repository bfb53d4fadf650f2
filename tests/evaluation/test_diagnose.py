"""What betrays a network that only seems robust, and a sound one that betrays nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastard import data
from fastard.evaluation.attacks import CWL2, AutoAttackParts, Setting
from fastard.evaluation.diagnose import diagnose, told
from fastard.evaluation.run import evaluate
from fastard.evaluation.suites import SUITES


@pytest.fixture(scope="module")
def images():
    return data.load("digits").test.first(40)


@pytest.fixture(scope="module")
def model(images) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images.float()), images.y).backward()
        optimizer.step()
    return model.eval()


class Around(nn.Module):
    """The network behind something that spoils its gradients."""

    def __init__(self, inner: nn.Module, before=lambda x: x, after=lambda z: z) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.inner(self.before(x)))


SPOILED = {
    "quantised": (lambda x: (x * 15).round() / 15, lambda z: z),
    "saturated": (lambda x: x, lambda z: 1000 * z),
    "random": (lambda x: x + 0.2 * torch.randn_like(x), lambda z: z),
    "softmax": (lambda x: x, lambda z: z.softmax(1)),
}


def wrong(model, images, eps=0.2):
    found = diagnose(Setting(model, eps=eps), images)
    assert all(line.startswith(("ok  ", "WARN")) for line in told(found))
    return {finding.name: finding.told for finding in found if not finding.good}


def test_a_sound_network_betrays_nothing(model, images):
    assert wrong(model, images) == {}


@pytest.mark.parametrize(
    ("name", "betrayed", "words"),
    [
        ("quantised", "gradients", "a quantised input hides it"),
        ("quantised", "black box", "gradients mislead PGD; trust Square"),
        ("quantised", "square", "Square Attack has decreased the robust accuracy"),
        ("quantised", "more steps", "more steps gain nothing"),
        ("quantised", "unlimited radius", "the gradient is masked"),
        ("saturated", "gradients", "saturated logits round it away"),
        ("random", "randomness", 'Please use version="rand"'),
        ("softmax", "output", "please be sure that the logits are used"),
    ],
)
def test_each_tell_tale_is_named(model, images, name, betrayed, words):
    found = wrong(Around(model, *SPOILED[name]), images)
    assert words in found[betrayed]


def test_fewer_classes_than_targets_are_told(images):
    torch.manual_seed(0)
    few = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    kept = images.select((images.y < 6).nonzero()[:, 0])
    found = {finding.name: finding for finding in diagnose(Setting(few, eps=0.1), kept, n=8)}
    assert not found["classes"].good
    assert "more target classes (9) than possible (5)" in found["classes"].told
    assert {"randomness", "output", "dynamics", "classes", "gradients"} <= found.keys()


def test_a_diagnosis_leaves_the_suites_own_square(model, images):
    setting = Setting(model, eps=0.1)
    diagnose(setting, images, n=5)
    whole = SUITES["square-only"][1]
    assert whole.made(setting).square.n_queries == 5000


def test_a_network_without_any_gradient_is_told_and_still_broken_by_square(model, images):
    hidden = Around(model, after=torch.Tensor.detach)
    found = wrong(hidden, images)
    assert "attack with Square" in found["gradients"] and "gradient attacks" in found
    assert "Square Attack has decreased the robust accuracy" in found["square"]
    result = evaluate(hidden, images, suite="square-only", eps=0.2)
    assert result["accuracy"]["square"] < 0.5 * result["accuracy"]["clean"]


def test_gradient_attacks_of_a_suite_leave_such_images_and_say_so(model, images, monkeypatch):
    hidden = Around(model, after=torch.Tensor.detach)
    square = AutoAttackParts("square", "Square", "custom", ("square",), n_queries=200)
    suite = (*SUITES["basic"], CWL2("cw", c=1.0, steps=2, lr=0.01, kappa=0.0), square)
    monkeypatch.setitem(SUITES, "basic", suite)
    result = evaluate(hidden, images, eps=0.2, batch_size=16)
    for key in ("fgsm", "pgd_sat", "cw_inf", "cw"):
        assert result["verdicts"][key] == result["verdicts"]["clean"]
    assert "FGSM: no gradient reaches the image, so that it was left as it is" in result["notes"]
    assert len([note for note in result["notes"] if "no gradient reaches" in note]) == 5
    assert result["accuracy"]["worst"] == result["accuracy"]["square"] < result["accuracy"]["clean"]


def test_the_model_stays_as_it_was(model, images):
    model.train()
    before = torch.get_rng_state()
    diagnose(Setting(model, eps=0.1), images, n=10)
    assert model.training and torch.equal(torch.get_rng_state(), before)
    model.eval()
    assert all(p.grad is None or p.requires_grad for p in model.parameters())
