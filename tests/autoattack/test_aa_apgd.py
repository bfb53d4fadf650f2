"""`APGDAttack` and `APGDAttack_targeted` beside the official package's."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from fastard.attacks import apgd_runs
from fastard.attacks.apgd_runs import Rows, Runs, Setting
from fastard.attacks.draws import CounterDraws
from fastard.attacks.places import Place
from fastard.autoattack.apgd import APGDAttack, APGDAttack_targeted
from fastard.autoattack.search import EagerSearch, EngineSearch
from fastard.engine import Program
from fastard.kinds import Norm
from tests.api.test_apgd import NothingRead

EPS = {"Linf": 0.012, "L2": 0.2, "L1": 1.6}


def network(classes=10):
    """A few convolutions, steep enough to be broken now and then."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(128, classes)).eval()  # fmt: skip
        for p in net.parameters():
            p.data *= 2.5
    return net


def setting(n=16, classes=10):
    """The network, images, and its own labels but for one."""
    net = network(classes)
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % classes
    return net, x, y


@pytest.fixture
def official():
    return pytest.importorskip("pyautoattack.autopgd_base", reason="pyautoattack is missing")


class Jittered(nn.Module):
    """A random model whose numbers are its own."""

    def __init__(self, net):
        super().__init__()
        self.net, self.generator = net, torch.Generator().manual_seed(9)

    def forward(self, v):
        return self.net(v) * (1 + 0.2 * torch.rand(len(v), 1, generator=self.generator))


KINDS = {
    "ce": {"n_restarts": 2},
    "dlr": {"loss": "dlr", "n_restarts": 2},
    "targeted": {"n_target_classes": 3},
    "eot": {"eot_iter": 3},
    "large": {"use_largereps": True, "n_restarts": 2},
    "large targeted": {"use_largereps": True, "n_target_classes": 3},
}
CASES = [(n, k) for n in EPS for k in KINDS if n == "L1" or "large" not in k]


def both(official, norm, kind, net, **more):
    """The official attack and, by `compat` or `search`, ours."""
    options = {"n_iter": 22, "norm": norm, "eps": EPS[norm], "seed": 3, **KINDS[kind]}
    name = "APGDAttack_targeted" if "targeted" in kind else "APGDAttack"
    ours = {"APGDAttack": APGDAttack, "APGDAttack_targeted": APGDAttack_targeted}[name]
    return getattr(official, name)(net(), **options), ours(net(), **options, **more)


@pytest.mark.parametrize("norm, kind", CASES)
def test_official_compat_is_bitwise_the_official_code(official, norm, kind):
    net, x, y = setting()
    theirs, ours = both(
        official, norm, kind, lambda: Jittered(net) if kind == "eot" else net, compat="official"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = theirs.perturb(x.clone(), y.clone())
        state, images = torch.get_rng_state(), x.clone()
        found = ours.perturb(x, y)
    assert torch.equal(found, wanted)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, images)
    robust = int((net(found).argmax(1) == y).sum())
    assert 0 < robust < len(x) - 1, "the setting breaks some images and not all"


@pytest.mark.parametrize("norm", EPS)
def test_best_loss_is_bitwise_the_official_code(official, norm):
    net, x, y = setting()
    theirs, ours = both(official, norm, "dlr", lambda: net, compat="official")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.random.fork_rng():
            torch.manual_seed(3)  # there the official code does not seed
            wanted = theirs.perturb(x.clone(), y.clone(), best_loss=True)
        assert torch.equal(ours.perturb(x, y, best_loss=True), wanted)


@pytest.mark.parametrize("norm, kind", CASES)
def test_the_engine_agrees(official, norm, kind):
    if kind == "eot":
        pytest.skip("a random model's own numbers differ from batch to batch")
    net, x, y = setting(48)
    theirs, ours = both(official, norm, kind, lambda: net, compat="official")
    own = both(official, norm, kind, lambda: net)[1]
    ours.search = EngineSearch(Program(net, "fp32"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = net(theirs.perturb(x.clone(), y.clone())).argmax(1) == y
        same_draws, own_draws = ours.perturb(x, y), own.perturb(x, y)
    order = {"Linf": torch.inf, "L2": 2, "L1": 1}[norm]
    for found, allowed in ((same_draws, 1), (own_draws, 4)):
        assert ((net(found).argmax(1) == y) != wanted).sum() <= allowed
        size = (found.double() - x.double()).flatten(1).norm(p=order, dim=1)
        assert (size <= EPS[norm] * (1 + 1e-5) + 1e-7).all()
        assert found.min() >= 0 and found.max() <= 1


class Counted(EngineSearch):
    """Notes the size of every batch."""

    def __init__(self, net, compacts=True):
        super().__init__(Program(net, "fp32"), compacts)
        self.sizes = []

    def ascend(self, x, objective):
        self.sizes.append(len(x))
        return super().ascend(x, objective)


@pytest.mark.parametrize("padded", [False, True])
def test_solved_samples_leave_between_blocks(padded, monkeypatch):
    monkeypatch.setattr(apgd_runs, "_pads", lambda x: padded)
    net, x, y = setting(40)
    verdicts, sizes = [], []
    for compacts in (True, False):
        attack = APGDAttack_targeted(net, 22, eps=0.02, n_target_classes=4)
        attack.search = Counted(net, compacts)
        verdicts.append(net(attack.perturb(x, y)).argmax(1) == y)
        sizes.append(attack.search.sizes)
    assert (verdicts[0] != verdicts[1]).sum() <= 1
    # Later targets meet fewer in either case; within a run only one shrinks.
    first = [runs[: 22 + 1] for runs in sizes]
    assert len(set(first[0])) > 1 and len(set(first[1])) == 1
    assert sum(sizes[0]) < sum(sizes[1])
    whole = set(apgd_runs.compacted.__globals__["_BUCKETS"])
    assert not padded or set(first[0][6:]) <= whole | {39}


def rows(x, y, eps):
    return Rows(x, y, torch.arange(len(x)), eps)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_the_host_reads_nothing_inside_a_block(norm, loss, large):
    if large and norm != "L1":
        pytest.skip("larger radii are L1's")
    net, x, y = setting(4)
    search = EngineSearch(Program(net, "fp32"))
    runs = Runs(search, CounterDraws(0, "apgd-ce"), Setting(Norm[norm], 22, loss, large_eps=large))
    with search.running(x):
        search.ascend(x, apgd_runs.objective(loss, y))
        with NothingRead():
            found = runs.run(rows(x, y, EPS[norm]), Place(), may_leave=False)
    assert found.loss.isfinite().all() and runs.iterations == 22


class RowByRow(nn.Module):
    """Logits of equal bits whatever else is in the batch."""

    def __init__(self):
        super().__init__()
        weight = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        self.register_buffer("weight", weight)

    def forward(self, v):
        return torch.stack([(12 * v * w).sin().flatten(1).sum(1) for w in self.weight], 1)


@pytest.mark.parametrize("norm", EPS)
def test_draws_depend_on_neither_batch_nor_order(norm):
    net, x = RowByRow().eval(), setting(9)[1]
    y = net(x).argmax(1)
    attack = APGDAttack(net, 8, norm, 2, EPS[norm], seed=5)
    attack.search = EagerSearch(net)
    whole = attack.perturb(x, y, best_loss=True)
    order = torch.tensor([7, 2, 0, 8, 5])
    parts = [attack.perturb(x[i], y[i], best_loss=True, ids=i) for i in order.split(2)]
    assert torch.equal(torch.cat(parts), whole[order])
    other = attack.perturb(x[order], y[order], best_loss=True)
    assert not torch.equal(other, whole[order]), "without ids positions count"
    attack.seed = 6
    assert not torch.equal(attack.perturb(x, y, best_loss=True), whole)


def test_zero_gradients_are_told_in_the_official_words(official):
    net, x, y = setting(6)

    def saturated(v):
        return torch.cat((net(v[:4]), net(v[4:]).detach() + 0 * v[4:].flatten(1)[:, :10]))

    heard = []
    for attack in both(official, "Linf", "dlr", lambda: saturated, compat="official"):
        with pytest.warns(Warning, match="points with zero gradient") as told:
            attack.perturb(x.clone(), y.clone())
        heard.append(sorted({str(w.message) for w in told}))
    assert heard[0] == heard[1]

    class Log(list):
        def warning(self, message):
            self.append(message)

    log = Log()
    APGDAttack(saturated, 2, eps=0.01, loss="dlr", logger=log, compat="official").perturb(x, y)
    assert log and log[0] in heard[0]


def test_a_sample_of_nan_logits_counts_as_broken_alone():
    net, x, y = setting(6)

    def poisoned(v):
        bad = (torch.arange(len(v)) == 2) & (len(v) == 6)
        return net(v) + torch.where(bad, torch.nan, 0.0)[:, None]

    attack = APGDAttack(poisoned, 6, eps=1e-4)
    attack.search = EngineSearch(Program(poisoned, "fp32", engine=False), compacts=False)
    clean = APGDAttack(net, 6, eps=1e-4)
    clean.search = EngineSearch(Program(net, "fp32", engine=False), compacts=False)
    found, wanted = (a.perturb(x, net(x).argmax(1), best_loss=True) for a in (attack, clean))
    others = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(found[others], wanted[others]) and found.isfinite().all()
    search = attack.search
    with search.running(x):
        runs = Runs(search, CounterDraws(0, "apgd-ce"), Setting(Norm.Linf, 3))
        robust = runs.run(rows(x, y, 1e-4), Place()).robust
    assert not robust[2] and robust[others[1:]].any()


def test_attributes_are_read_at_each_call():
    net, x, y = setting()
    attack = APGDAttack(net, eps=0.012, n_iter=5)
    assert (attack.thr_decr, attack.n_iter_orig, attack.use_rs, attack.seed) == (0.75, 5, True, 0)
    attack.search = Counted(net)
    attack.perturb(x, y)
    one = len(attack.search.sizes)
    attack.n_restarts, attack.eot_iter, attack.loss = 3, 2, "dlr"
    attack.search.sizes.clear()
    attack.perturb(x, y)
    assert one == 6 and len(attack.search.sizes) == 36
    assert torch.equal(attack.perturb(x[3], y[3]), attack.perturb(x[3:4], y[3:4]))
    assert attack.perturb(x[:0], y[:0]).shape == (0, 3, 8, 8)


def test_a_given_start_and_labels_of_the_models_own():
    net, x, y = setting()
    far = (x + 0.01).clamp(0, 1)
    attack = APGDAttack(net, 1, eps=0.012)
    assert not torch.equal(attack.perturb(x, best_loss=True, x_init=far),
                           attack.perturb(x, best_loss=True))  # fmt: skip
    attack.compat = "official"
    with pytest.warns(UserWarning, match="x_init is ignored"):
        found = attack.perturb(x, y, x_init=far)
    assert torch.equal(found, attack.perturb(x, y))
    towards = APGDAttack(net, 10, eps=0.05, loss="ce-targeted-cfts")
    goals = (y + 1) % 10
    before = nn.functional.cross_entropy(net(x), goals)
    after = nn.functional.cross_entropy(net(towards.perturb(x, goals, best_loss=True)), goals)
    assert after < before
    nearer = APGDAttack_targeted(net, 10, eps=0.02, n_target_classes=2)
    nearer.loss = "ce-targeted"
    assert (net(nearer.perturb(x, y)).argmax(1) != y).sum() > 1


@pytest.mark.parametrize("norm", EPS)
def test_a_radius_of_nothing(norm):
    net, x, y = setting(4)
    found = APGDAttack(net, 3, norm, eps=0.0).perturb(x, y, best_loss=True)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-6)


def test_what_is_printed(capsys):
    net, x, y = setting(4)
    APGDAttack(net, 5, "L1", eps=1.0, use_largereps=True, verbose=True).perturb(x, y)
    said = capsys.readouterr().out
    assert "running L1-attack with epsilon 1.00000" in said
    assert "initial accuracy: 75.00%" in said and "using schedule [3.0+2.0+1.0x2+2+1]" in said
    assert "[m] iteration: 0 - best loss: " in said and " - topk: " in said
    assert "restart 0 - robust accuracy: " in said


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda net: APGDAttack(net), "eps must be given"),
        (lambda net: APGDAttack(net, eps=0.1, is_tf_model=True), "is_tf_model must be False"),
        (lambda net: APGDAttack(net, eps=0.1, norm="L3"), "unknown norm 'L3'"),
        (lambda net: APGDAttack(net, eps=0.1, n_iter=0), "n_iter must be at least 1"),
        (lambda net: APGDAttack(net, eps=-0.1), "eps must be finite and not negative"),
        (lambda net: APGDAttack(net, eps=0.1, loss="dlrr"), "unknown loss 'dlrr'"),
        (lambda net: APGDAttack(net, eps=0.1, rho=2), "rho must lie in"),
        (
            lambda net: APGDAttack(net, eps=0.1, use_largereps=True),
            "use_largereps goes with norm 'L1'",
        ),
        (lambda net: APGDAttack(net, eps=0.1, n_restarts=0), "n_restarts must be at least 1"),
        (
            lambda net: APGDAttack(net, eps=0.1, loss="ce-targeted-cfts"),
            "goes with best_loss=True",
        ),
        (
            lambda net: APGDAttack_targeted(net, eps=0.1, n_target_classes=10),
            "below the model's 10",
        ),
        (
            lambda net: APGDAttack_targeted(network(3), eps=0.1, n_target_classes=2),
            "'dlr-targeted' needs at least 4 classes, but the model has 3",
        ),
        (
            lambda net: APGDAttack(network(2), eps=0.1, loss="dlr"),
            "'dlr' needs at least 3 classes, but the model has 2",
        ),
    ],
)
def test_bad_input(make, sentence):
    net, x, y = setting(2)
    with pytest.raises(ValueError, match=sentence):
        make(net).perturb(x, y % 2)


def test_bad_images_and_labels():
    net, x, y = setting(4)
    attack = APGDAttack(net, 2, eps=0.1)
    with pytest.raises(ValueError, match="x must lie in"):
        attack.perturb(x * 2, y)
    with pytest.raises(ValueError, match=r"y must lie in \[0, 10\)"):
        attack.perturb(x, y + 10)
    with pytest.raises(ValueError, match=r"ids must be one int64 per sample \[4\]"):
        attack.perturb(x, y, ids=torch.arange(3))
    with pytest.raises(ValueError, match="x_init must have x's shape"):
        attack.perturb(x, y, x_init=x[:1])
