"""The whole suite on a tiny network: the official package's verdicts, in every mode."""

from __future__ import annotations

import pytest
import torch

import fastard
from fastard.autoattack import referee
from fastard.autoattack.judge import distance, inside
from fastard.kinds import parse_norm
from tests.autoattack.official_case import tiny_case

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
NORMS = ("Linf", "L2", "L1")
QUERIES, TARGETS = 60, 2


def small(attack):
    """A standard version of fewer queries, targets and restarts, ours or the official one."""
    attack.square.n_queries, attack.apgd.n_restarts = QUERIES, 1
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = TARGETS
    return attack


def ours(case, **options) -> fastard.AutoAttack:
    made = fastard.AutoAttack(case.model, case.norm, case.eps, 0, verbose=False, **options)
    return small(made)


@pytest.fixture(scope="module", params=NORMS)
def judged(request):
    """A case and the official images and verdicts."""
    if referee.installed() is None:
        pytest.skip("no official package is installed: pip install pyautoattack")
    case = tiny_case(request.param)
    official = small(referee.official_attack(case.model, case.norm, case.eps, 0, case.x.device))
    return case, *referee.official_images(official, case.model, case.x, case.y, bs=10)


def test_compat_gives_the_official_images(judged):
    case, x_adv, robust = judged
    assert 0 < int(robust.sum()) < len(robust) - 2
    attack = ours(case, compat="official")
    found = attack.run_standard_evaluation(case.x, case.y, bs=10)
    assert attack.report.robust.tolist() == robust.tolist()
    assert torch.equal(found, x_adv)


@pytest.mark.parametrize("options", [{"compat": "official", "engine": True}, {}])
def test_the_engine_gives_the_official_verdicts_but_one(judged, options):
    case, _, robust = judged
    attack = ours(case, **options)
    x_adv = attack.run_standard_evaluation(case.x, case.y, bs=10)
    differing = (attack.report.robust != robust).nonzero()[:, 0].tolist()
    assert len(differing) <= 1, differing
    with torch.no_grad():
        wrong = case.model(x_adv).argmax(1) != case.y
    assert torch.equal(wrong, ~attack.report.robust)
    norm = parse_norm(case.norm)
    assert inside(x_adv, case.x, case.eps, norm).all()
    assert attack.report.robust.any() and (distance(x_adv, case.x, norm) > 0).any()
    forwards, gradients = attack.report.per_robust_sample()
    assert forwards > gradients > 0


@pytest.mark.parametrize("norm", NORMS)
def test_no_batch_size_or_order_changes_the_images(norm):
    case = tiny_case(norm)
    whole = ours(case)
    x_adv = whole.run_standard_evaluation(case.x, case.y)
    order = torch.randperm(len(case.x), generator=torch.Generator().manual_seed(5))
    parts = ours(case)
    shuffled = parts.run_standard_evaluation(case.x[order], case.y[order], bs=5, ids=order)
    assert parts.report.robust.tolist() == whole.report.robust[order].tolist()
    assert (shuffled - x_adv[order]).flatten(1).abs().amax(1).median() < 1e-5


def test_the_referee_says_where_it_differs(monkeypatch):
    case = tiny_case()
    attack = ours(case, compat="official")
    before = torch.get_rng_state()
    attack.run_standard_evaluation(case.x, case.y)
    found = referee.agreement(attack, case.x, case.y)
    assert found.differing == [] and "0 verdicts differ" in str(found)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in case.model.parameters())
    attack.report.robust[2] ^= True
    assert referee.agreement(attack, case.x, case.y).differing == [2]
    with pytest.raises(ValueError, match="n must lie between 1 and 16, but is 17"):
        referee.agreement(attack, case.x, case.y, n=17)
    with pytest.raises(ValueError, match="must have evaluated the 3 samples"):
        referee.agreement(attack, case.x[:3], case.y[:3])
    monkeypatch.setattr(referee, "installed", lambda: None)
    with pytest.raises(ImportError, match="pip install pyautoattack"):
        referee.agreement(attack, case.x, case.y)


def test_the_packages_differ_in_their_arguments(monkeypatch):
    """The repository's `autoattack` takes what ours does; it need not be installed to be tried."""
    seen = {}

    class Official:
        __module__ = "autoattack.autoattack"

        def __init__(self, model, norm, eps, seed, version, attacks_to_run, device):
            seen["made"] = attacks_to_run

        def run_standard_evaluation(self, x, y, bs, return_labels):
            seen["bs"] = bs
            return x, y.clone()

    module = type("Module", (), {"AutoAttack": Official})
    monkeypatch.setattr(referee, "installed", lambda: "autoattack")
    monkeypatch.setattr(referee.importlib, "import_module", lambda name: module)
    case = tiny_case()
    attack = referee.official_attack(
        case.model, "Linf", 0.1, 0, case.x.device, "custom", ["square"]
    )
    _, robust = referee.official_images(attack, case.model, case.x, case.y, bs=7)
    assert robust.all() and seen == {"made": ["square"], "bs": 7}


def test_a_gradient_free_model_is_broken_by_square(monkeypatch):
    case = tiny_case()

    class Stepped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = case.model

        def forward(self, x):
            return self.inside((x * 255).round() / 255)

    attack = fastard.AutoAttack(Stepped(), "Linf", case.eps, 0, verbose=False)
    small(attack).run_standard_evaluation(case.x, case.y)
    assert "square" in attack.report.broken_by
    assert any("points with zero gradient" in flag for flag in attack.report.flags)
