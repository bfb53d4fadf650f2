"""Models that are random, have no gradient, are fp64 or answer NaN, and where they run."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest
import torch
from torch import nn

import fastard
from fastard.autoattack import referee
from fastard.autoattack.apgd import APGDAttack
from fastard.autoattack.fab import FABAttack_PT
from fastard.autoattack.search import EagerSearch
from tests.autoattack.official_case import EPS, labelled, tiny
from tests.autoattack.stand_ins import Mean, images, stand_in

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
NORMS = ("Linf", "L2", "L1")


def small(model, norm="Linf", **options):
    """AutoAttack of few iterations, queries and targets."""
    attack = fastard.AutoAttack(model, norm, EPS[norm], 0, verbose=False, **options)
    attack.square.n_queries, attack.apgd.n_restarts = 60, 1
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = 2
    for part in (attack.apgd, attack.apgd_targeted, attack.fab):
        part.n_iter = part.n_iter_orig = 6
    return attack


def judge_agrees(attack, model, x_adv, y):
    with torch.no_grad():
        return torch.equal(model(x_adv).argmax(1) == y, attack.report.robust)


@pytest.mark.parametrize("compat", [None, "official"])
def test_a_device_by_another_of_its_names(compat):
    model = tiny()
    x, y = labelled(model, 8)
    attack = small(model, device="cpu:0", compat=compat)
    x_adv = attack.run_standard_evaluation(x, y)
    assert judge_agrees(attack, model, x_adv, y) and attack.device_of(x) == x.device
    found = APGDAttack(model, 3, eps=0.02, device="cpu:0").perturb(x, y)
    assert torch.equal(found, APGDAttack(model, 3, eps=0.02).perturb(x, y))


@pytest.mark.parametrize("version", ["standard", "rand"])
def test_a_random_model_is_searched_as_it_is(monkeypatch, version):
    class Branch(Mean):
        def forward(self, x):
            logits = super().forward(x)
            # Both answers name the same class: only the logits tell them apart.
            return logits if next(turn) % 2 else logits - logits.amin(1, True)

    turn = iter(range(10**6))
    attacks = stand_in(monkeypatch)
    attack = fastard.AutoAttack(Branch(), eps=0.01, seed=0, verbose=False, version=version)
    attack.run_standard_evaluation(*images())
    (call,) = [c for c in attacks["apgd"].calls if c["loss"] == "ce"]
    assert call["search"].program.engine is False
    assert attack.report.engine is False and "(eager)" in attack.report.lines()[0]
    stand_in(monkeypatch)
    plain = fastard.AutoAttack(Mean(), eps=0.01, seed=0, verbose=False)
    plain.run_standard_evaluation(*images())
    assert plain.report.engine is True


class Without(nn.Module):
    """The network by a way that no gradient takes."""

    def __init__(self, way):
        super().__init__()
        self.way, self.inside = way, tiny()

    def forward(self, x):
        if self.way == "no_grad":
            with torch.no_grad():
                return self.inside(x)
        if self.way == "numpy":
            x = torch.from_numpy(x.numpy().copy())
        return self.inside(x.detach())


@pytest.mark.parametrize("way", ["no_grad", "detach", "numpy"])
@pytest.mark.parametrize("compat", [None, "official"])
def test_a_model_without_gradients_is_left_to_square(way, compat):
    model = Without(way)
    x, y = labelled(model, 10)
    attack = small(model, compat=compat)
    with pytest.warns(UserWarning, match="gradient attacks left out"):
        x_adv = attack.run_standard_evaluation(x, y)
    report = attack.report
    assert report.attacks == ("square",) and "square" in report.broken_by
    assert report.version.startswith("reduced")
    assert report.reductions[-1].startswith("gradient attacks left out: the model's ")
    assert judge_agrees(attack, model, x_adv, y)
    assert set(small(model, compat=compat).run_standard_evaluation_individual(x, y)) == {"square"}
    alone = small(model, compat=compat, version="custom", attacks_to_run=["apgd-ce", "fab-t"])
    with pytest.raises(ValueError, match="apgd-ce, fab-t cannot run without a gradient"):
        alone.run_standard_evaluation(x, y)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("compat", [None, "official"])
def test_float64_stays_float64(norm, compat):
    model = tiny().double()
    x, y = labelled(tiny(), 10)
    attack = small(model, norm, compat=compat)
    x_adv = attack.run_standard_evaluation(x.double(), y)
    assert x_adv.dtype == torch.float64 and judge_agrees(attack, model, x_adv, y)
    assert "apgd-ce" in attack.report.broken_by


def test_images_of_another_precision_than_the_models_are_refused():
    x, y = labelled(tiny(), 8)
    with pytest.raises(TypeError, match="x_orig must be float32 for this model's weights"):
        small(tiny()).run_standard_evaluation(x.double(), y)
    with pytest.raises(TypeError, match="x_orig must be float64 for this model's weights"):
        small(tiny().double()).run_standard_evaluation(x, y)


@pytest.mark.parametrize("compat", [None, "official"])
def test_it_runs_in_inference_mode(compat):
    model = tiny()
    x, y = labelled(model, 8)
    wanted = small(model, compat=compat).run_standard_evaluation(x, y)
    with torch.inference_mode():
        attack = small(model, compat=compat)
        found = attack.run_standard_evaluation(x.clone(), y.clone())
        assert attack.clean_accuracy(x, y) == 6 / 8
    assert torch.equal(found, wanted) and not found.is_inference()


def test_unusable_logits_are_wrong_everywhere(monkeypatch):
    stand_in(monkeypatch)

    class Unusable(Mean):
        def forward(self, x):
            logits = super().forward(x)
            first = x[:, 0, 0, 0]
            logits[first < 0.2, 0] = torch.nan
            logits[(first > 0.2) & (first < 0.4)] = torch.inf
            return logits

    x, _ = images()
    y = torch.tensor([0, 1, 0, 3, *range(4, 10)])
    attack = fastard.AutoAttack(Unusable(), eps=0.1, seed=0, verbose=False)
    assert attack.clean_accuracy(x, y) == 0.6
    _, y_adv = attack.run_standard_evaluation(x, y, return_labels=True)
    assert attack.report.unusable == 4 and (y_adv == y).tolist() == [False] * 4 + [True] * 6


def test_the_report_names_what_was_changed(monkeypatch):
    def told(change, **options):
        stand_in(monkeypatch)
        attack = fastard.AutoAttack(Mean(), eps=0.1, seed=0, verbose=False, **options)
        change(attack)
        attack.run_standard_evaluation(*images())
        return attack.report.version, "official standard" in "".join(attack.report.lines())

    assert told(lambda a: None) == ("standard", True)
    assert told(lambda a: a.cheap()) == ("standard, changed (square.n_queries=1000)", False)
    assert told(lambda a: a.apgd.__dict__.update(n_iter=10))[0] == (
        "standard, changed (apgd.n_iter=10)"
    )
    assert told(lambda a: a.__dict__.update(attacks_to_run=["square"])) == (
        "standard, changed (attacks_to_run=square)", False
    )  # fmt: skip
    assert told(lambda a: a.set_version("plus")) == ("plus", False)
    custom = {"version": "custom", "attacks_to_run": ["fab"]}
    assert told(lambda a: a.cheap(), **custom) == ("custom", False)


def test_numbers_of_numpy_reach_the_report_as_pythons(monkeypatch):
    stand_in(monkeypatch)
    attack = fastard.AutoAttack(
        Mean(), eps=np.float32(0.1), seed=np.int64(3), verbose=False, compat="official"
    )
    attack.run_standard_evaluation(*images())
    content = json.loads(json.dumps(attack.report.to_dict()))
    assert content["seed"] == 3 and content["eps"] == pytest.approx(0.1)


def test_an_attack_of_a_compat_autoattack_is_official_alone():
    class Noted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.modes = tiny(), []

        def forward(self, x):
            self.modes.append(self.training)
            return self.inside(x)

    model = Noted().train()
    attack = small(model, compat="official")
    parts = (attack.apgd, attack.apgd_targeted, attack.fab, attack.square)
    assert [part.compat for part in parts] == ["official"] * 4
    x, y = labelled(tiny(), 8)
    for part in parts:
        part.n_queries = 5
        part.perturb(x, y)
    assert model.modes and not any(model.modes) and model.training
    assert isinstance(attack.apgd._search(), EagerSearch)


def test_official_images_are_clipped_where_they_break_the_model_there(monkeypatch):
    attacks = stand_in(monkeypatch, {"apgd": {0, 9}}, by=0.1)
    x, y = images()
    attacks["apgd"].perturb = lambda x, y, ids: torch.where(
        (ids == 9).view(-1, 1, 1, 1), x.roll(1, 0), x
    ).index_fill(1, torch.tensor([2]), 1 + 1.2e-7)
    attack = fastard.AutoAttack(Mean(), eps=0.1, seed=0, verbose=False, compat="official")
    x_adv = attack.run_standard_evaluation(x, y)
    assert attack.report.broken_by[9] == "apgd-ce" and x_adv.max() == 1.0


def test_fab_refuses_images_and_labels_that_it_cannot_judge():
    model = tiny()
    x, y = labelled(model, 8)
    with pytest.raises(ValueError, match=r"x must lie in \[clip_min, clip_max\]"):
        FABAttack_PT(model).perturb(x * 255, y)
    with pytest.raises(ValueError, match=r"y must lie in \[0, 5\)"):
        FABAttack_PT(model).perturb(x, y + 5)


def test_the_official_package_is_told_from_a_folder_of_its_name(monkeypatch, tmp_path):
    folders = {}
    for name in ("autoattack", "pyautoattack"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").touch()
        folders[name] = types.SimpleNamespace(origin=str(folder / "__init__.py"))
    monkeypatch.setattr(referee.importlib.util, "find_spec", folders.get)
    assert referee.installed() is None
    (tmp_path / "pyautoattack" / "autoattack.py").touch()
    assert referee.installed() == "pyautoattack"
