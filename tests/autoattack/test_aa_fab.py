"""FAB and FAB-T against the official package: bits, verdicts, passes, what the host reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastard.attacks import fab as walks
from fastard.attacks.fab import FAR, Rows, Walk, advance, fab, look_ahead
from fastard.autoattack.fab import FABAttack, FABAttack_PT
from fastard.autoattack.search import EagerSearch, EngineSearch
from fastard.engine import Program
from fastard.kinds import Norm
from tests.api.models import batch, small_net
from tests.api.test_apgd import NothingRead

EPS = {"Linf": 0.1, "L2": 1.1, "L1": 6.0}
KINDS = [(norm, targeted) for norm in EPS for targeted in (False, True)]


def setting(n=12, classes=5):
    """A network in eval mode, images and the labels it gives them, but for the first."""
    net, (x, _, _) = small_net(classes).eval(), batch(n, side=8)
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % classes
    return net, x, y


def options(norm, targeted, **more):
    return {"norm": norm, "n_restarts": 2, "n_iter": 8, "eps": EPS[norm], "seed": 3,
            "targeted": targeted, "n_target_classes": 3, **more}  # fmt: skip


def still_right(net, x, y):
    with torch.no_grad():
        return net(x).argmax(1) == y


def size(d, norm):
    order = {"Linf": torch.inf, "L2": 2, "L1": 1}[norm]
    return d.double().flatten(1).norm(order, dim=1)


def official_class():
    module = pytest.importorskip(
        "pyautoattack.fab_pt", reason="pyautoattack, the referee, is not installed"
    )
    return module.FABAttack_PT


@pytest.mark.parametrize("norm, targeted", KINDS)
def test_official_bits_and_engine_verdicts(norm, targeted):
    net, x, y = setting()
    given = options(norm, targeted)
    wanted = official_class()(net, device="cpu", **given).perturb(x.clone(), y.clone())
    torch.manual_seed(11)
    before = torch.get_rng_state()
    attack = FABAttack_PT(net, **given)
    attack.compat = "official"
    assert torch.equal(attack.perturb(x, y), wanted)
    assert torch.equal(torch.get_rng_state(), before)
    right = still_right(net, wanted, y)
    assert 1 < (~right).sum() < len(x), "the setting breaks some images and not all"
    found = []
    for compat in ("official", None):
        attack.search, attack.compat = EngineSearch(Program(net, "fp32")), compat
        found.append(attack.perturb(x, y))
    for adv in found:
        assert (still_right(net, adv, y) != right).sum() <= 1
        assert (size(adv - x, norm) <= EPS[norm] * (1 + 1e-5)).all()
        assert adv.min() >= 0 and adv.max() <= 1
        assert torch.equal(adv[0], x[0]), "a sample already wrong is left alone"
        kept = still_right(net, adv, y)
        assert torch.equal(adv[kept], x[kept])


@pytest.mark.parametrize("norm", EPS)
def test_a_single_official_run(norm):
    net, x, y = setting(6)
    reference = official_class()(net, device="cpu", **options(norm, True))
    attack = FABAttack(net, **options(norm, True))
    attack.compat, attack.search = "official", EagerSearch(net)
    reference.target_class = attack.target_class = 2
    torch.manual_seed(3)
    wanted = reference.attack_single_run(x, y, use_rand_start=True, is_targeted=True)
    got = attack.attack_single_run(x, y, use_rand_start=True, is_targeted=True)
    assert torch.equal(got, wanted) and not torch.equal(got, x)
    own = attack.attack_single_run(x)
    assert torch.equal(own, reference.attack_single_run(x))


@pytest.mark.parametrize("targeted", [False, True])
def test_draws_depend_on_the_sample_alone(targeted):
    net, x, y = setting()
    net.double()
    attack = FABAttack_PT(lambda v: net(v.double()).float(), **options("L2", targeted))
    attack.n_restarts, attack.n_iter = 3, 4
    whole = attack.perturb(x, y)
    ids = torch.arange(len(x)).flip(0)
    parts = [attack.perturb(x[i], y[i], ids=i) for i in ids.split(5)]
    torch.testing.assert_close(torch.cat(parts).flip(0), whole, rtol=0, atol=1e-5)


class Far(nn.Module):
    """Linear: its boundary lies beyond the box."""

    def __init__(self, classes=4):
        super().__init__()
        self.linear = nn.Linear(12, classes, bias=True)
        nn.init.constant_(self.linear.bias, 0.0)
        with torch.no_grad():
            self.linear.weight.mul_(1e-3)
            self.linear.bias[0] = 9.0

    def forward(self, v):
        return self.linear(v.flatten(1))


def test_a_test_that_fails_costs_one_pass():
    """Forwards of n_iter tests and of the start, each with its gradients: nothing else."""
    net, x, y = Far(), torch.rand(5, 3, 2, 2), torch.zeros(5, dtype=torch.int64)
    walk = Walk(Norm.Linf, 7, 0.1)
    search = EngineSearch(Program(net, "fp32"))
    with search.running(x):
        _, norms = fab(search, x, y, walk, goals=y + 1)
    assert (norms == FAR).all() and (search.forwards, search.gradients) == (5 * 8, 5 * 8)
    search = EngineSearch(Program(net, "fp32"))
    with search.running(x):
        fab(search, x, y, walk)
    # Untargeted, C - 1 gradients; a forward decides first whether they are of use.
    assert search.gradients == 5 * 8 * 3 and search.forwards == 5 * (8 + 7)


@pytest.mark.parametrize("targeted", [False, True])
def test_passes_are_fewer_than_the_official_ones(targeted):
    net, x, y = setting()
    attack = FABAttack_PT(net, **options("Linf", targeted, n_restarts=1, n_iter=20, eps=1e-9))
    attack.search = search = EngineSearch(Program(net, "fp32"))
    attack.perturb(x, y)
    tests = 11 * 20 * (3 if targeted else 1)
    assert search.forwards <= 2.2 * tests
    assert search.gradients <= (1.2 if targeted else 4 * 1.1) * tests


@pytest.mark.parametrize("norm, targeted", KINDS)
def test_blocks_find_what_single_passes_find(norm, targeted, monkeypatch):
    """As where looking at the device is dear: every pass for all, buckets, few looks."""
    monkeypatch.setattr(walks, "BLOCK", 3)
    net, x, y = setting()
    net, x, y = net.double(), x[1:].double(), y[1:]
    search = EngineSearch(Program(net, "fp32"))
    goals = net(x).argsort(1)[:, -2] if targeted else None
    for limit in (EPS[norm], -1.0):
        with search.running(x):
            one, two = (fab(search, x, y, Walk(Norm[norm], 6, limit), goals, None, net, exact)
                        for exact in (True, False))  # fmt: skip
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
        assert (one[1] < FAR).any()


def test_the_module_has_the_last_word():
    """Where it does not err, its program's adversarial is none and the search goes on."""
    net, x, y = setting()
    x, y = x[1:2], y[1:2]
    attack = FABAttack_PT(net, **options("Linf", True, eps=0.4))
    attack.search, seen = EngineSearch(Program(net, "fp32")), []

    def stubborn(v):
        seen.append(len(v))
        return net(v) if len(seen) > 2 else 100.0 * nn.functional.one_hot(y, 5)

    attack.predict = stubborn
    assert not still_right(net, attack.perturb(x, y), y).any() and len(seen) > 2
    attack.predict = lambda v: 100.0 * nn.functional.one_hot(y, 5)
    assert torch.equal(attack.perturb(x, y), x)
    # On the boundary, as far as rounding can tell: better than nothing, but only than nothing.
    attack.predict = lambda v: 100.0 + 1e-3 * nn.functional.one_hot((y + 1) % 5, 5)
    found = attack.perturb(x, y)
    assert 0 < size(found - x, "Linf").item() <= 0.4
    assert attack.search.forwards > 2 * options("Linf", True)["n_iter"]


@pytest.mark.parametrize("norm, targeted", KINDS)
def test_the_host_reads_nothing_inside_a_block(norm, targeted):
    weight = torch.randn(12, 4)

    class Linear:
        compacts = True

        def logits(self, x):
            return x.flatten(1) @ weight

        def forward(self, x):
            return self.logits(x)

        def vjp(self, dlogits, retain=False):
            return (dlogits @ weight.T).view(-1, 3, 2, 2)

        def once(self, key, work, given, gradients):
            return work(self, given)

    x = torch.rand(4, 3, 2, 2)
    order = Linear().logits(x).argsort(1)
    goals = order[:, -2].contiguous() if targeted else None
    rows = Rows.begun(x, order[:, -1].contiguous(), goals, x)
    walk = Walk(Norm[norm], 5)
    with NothingRead():
        for _ in range(6):
            look_ahead(Linear(), rows, walk, None)
            advance(Linear(), rows, walk)
    assert (rows.tests == 5).all() and (rows.size < FAR).any()


def test_few_classes_and_nan_and_nothing_to_do():
    net, x, y = setting(6, classes=2)
    attack = FABAttack_PT(net, **options("Linf", True, n_target_classes=9, eps=0.5))
    adv = attack.perturb(x, y)
    assert attack.target_class == 2 and not still_right(net, adv, y).all()

    class Broken(nn.Module):
        def forward(self, v):
            return net(v) + torch.where(
                (v - x[1]).flatten(1).abs().sum(1, keepdim=True) == 0, torch.nan, 0.0)  # fmt: skip

    attack.search = EngineSearch(Program(Broken(), "fp32", engine=False))
    again = attack.perturb(x, y)
    others = [0, 2, 3, 4, 5]
    assert torch.equal(still_right(net, again, y)[others], still_right(net, adv, y)[others])
    assert torch.equal(again[1], x[1])
    attack.search = None
    wrong = (y + 1) % 2
    assert torch.equal(attack.perturb(x[1:2], wrong[1:2]), x[1:2])
    assert attack.perturb(x[:0], y[:0]).shape == (0, 3, 8, 8)


def test_what_it_prints_and_refuses(capsys):
    net, x, y = setting(4)
    attack = FABAttack_PT(net, **options("Linf", True, n_restarts=1, verbose=True))
    attack.perturb(x, y)
    assert "restart 0 - target_class 2 - robust accuracy: " in capsys.readouterr().out
    attack.compat = "offical"
    with pytest.raises(ValueError, match="unknown compat 'offical'.*did you mean 'official'"):
        attack.perturb(x, y)
    attack.compat = None
    attack.target_class = None
    with pytest.raises(ValueError, match="target_class must be set"):
        attack.attack_single_run(x, y, is_targeted=True)
    with pytest.raises(ValueError, match="unknown norm 'L3'"):
        FABAttack_PT(net, norm="L3")
    assert [FABAttack_PT(net, norm=norm).eps for norm in EPS] == [0.3, 1.0, 5.0]
