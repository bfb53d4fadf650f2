"""Square Attack: the official code's bits, its verdicts, draws of each sample's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastard
from fastard.attacks import square as search
from fastard.attacks.draws import OfficialDraws
from fastard.attacks.l1_official import onto_ball_and_box
from fastard.attacks.square import Found, Reads
from fastard.attacks.square_draws import KeyedSquares, OfficialSquares
from fastard.attacks.square_schedule import Squares
from fastard.autoattack.search import EngineSearch
from fastard.autoattack.square import SquareAttack
from fastard.engine import Program
from fastard.kinds import Norm
from tests.autoattack.weak import weak_net

EPS = {"Linf": 0.03, "L2": 0.35, "L1": 4.0}
# loss, targeted, resc_schedule, n_restarts
WAYS = [("margin", False, False, 2), ("ce", False, True, 1), ("margin", True, True, 1)]
ways = pytest.mark.parametrize("loss, targeted, rescaled, restarts", WAYS)
norms = pytest.mark.parametrize("norm", EPS)


@pytest.fixture(scope="module")
def official():
    return pytest.importorskip("pyautoattack.square", reason="pyautoattack is not installed")


def broken(net, x, y, targeted=False):
    with torch.no_grad():
        return (net(x).argmax(1) != y) ^ targeted


def size(x_adv, x, norm):
    d = (x_adv.double() - x.double()).flatten(1)
    return d.abs().amax(1) if norm == "Linf" else d.norm(p=2 if norm == "L2" else 1, dim=1)


@norms
@ways
def test_the_official_bits_and_with_the_engine_its_verdicts(
    official, norm, loss, targeted, rescaled, restarts
):
    net, x, y = weak_net()
    if targeted:
        y = (y + 1) % 5
    options = {"norm": norm, "n_queries": 50, "eps": EPS[norm], "n_restarts": restarts, "seed": 3,
               "loss": loss, "targeted": targeted, "resc_schedule": rescaled}  # fmt: skip
    global_state = torch.get_rng_state()
    wanted = official.SquareAttack(net, device="cpu", **options).perturb(x.clone(), y.clone())
    torch.set_rng_state(global_state)
    attack = SquareAttack(net, **options)
    attack.compat = "official"
    assert torch.equal(attack.perturb(x, y), wanted)
    adv = fastard.square(
        net, x, y, norm, EPS[norm], 50, n_restarts=restarts, loss=loss, targeted=targeted,
        resc_schedule=rescaled, seed=3, compat="official", engine=False)  # fmt: skip
    assert torch.equal(adv, wanted)
    attack.search = EngineSearch(Program(net, "fp32"))
    engine = attack.perturb(x, y)
    assert torch.equal(torch.get_rng_state(), global_state)
    reached = broken(net, wanted, y, targeted)
    assert 0 < reached.sum() < len(x), "the setting breaks some images and not all"
    assert torch.equal(broken(net, engine, y, targeted), reached)
    torch.testing.assert_close(engine, wanted, rtol=0, atol=1e-6)


@norms
@pytest.mark.parametrize("engine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_official_draws_with_a_radius_per_sample(norm, engine, dtype):
    net, x, y = weak_net()
    net, x = net.to(dtype), x.to(dtype)
    options = {"n_queries": 30, "resc_schedule": False, "compat": "official", "engine": engine}
    wanted = fastard.square(net, x, y, norm, EPS[norm], **options)
    assert 0 < broken(net, wanted, y, False).sum() < len(x), "rows leave, and not all"
    radii = torch.full((len(x),), EPS[norm], dtype=dtype)
    adv = fastard.square(net, x, y, norm, radii, **options)
    torch.testing.assert_close(adv, wanted, rtol=0, atol=1e-6)


def test_without_labels_the_official_targets(official):
    net, x, _ = weak_net()
    for targeted in (False, True):
        options = {"n_queries": 5, "eps": 0.05, "targeted": targeted}
        torch.manual_seed(9)
        wanted = official.SquareAttack(net, device="cpu", **options).perturb(x.clone())
        torch.manual_seed(9)
        attack = SquareAttack(net, **options)
        attack.compat = "official"
        assert torch.equal(attack.perturb(x), wanted)
        assert not torch.equal(wanted, x)


def test_a_run_of_the_engine_that_ends_early_leaves_the_official_numbers_to_the_next():
    draws = OfficialSquares(OfficialDraws(1), "Linf")
    ids = torch.arange(4)
    draws.queries(ids, 0, 100, 3, "Linf")
    draws.ended(7)
    plain = torch.Generator().manual_seed(1)
    for _ in range(7):
        for shape in ([1], [1], [3, 1, 1]):
            torch.rand(shape, generator=plain)
    found = draws.start(ids, (3, 5, 5), "Linf", 0)
    assert torch.equal(found, torch.rand(4, 3, 1, 5, generator=plain))


def test_the_official_projection(official):
    base = pytest.importorskip("pyautoattack.autopgd_base")
    g = torch.Generator().manual_seed(2)
    x = torch.rand(9, 3, 6, 6, generator=g)
    for scale in (0.01, 0.3, 3.0):
        delta = scale * torch.randn(x.shape, generator=g)
        wanted = base.L1_projection(x, delta, 4.0)
        assert torch.equal(onto_ball_and_box(x, delta, 4.0), wanted)


@norms
def test_the_default_finds_as_much_within_ball_and_box(norm):
    net, x, y = weak_net(n=32)
    attacks = [SquareAttack(net, norm, 100, EPS[norm], seed=s, resc_schedule=False) for s in (0, 1)]
    attacks[1].compat = "official"
    advs = [attack.perturb(x, y) for attack in attacks]
    for adv in advs:
        slack = 1e-6 if norm == "Linf" else 1e-5 * EPS[norm]
        assert (size(adv, x, norm) <= EPS[norm] + slack).all()
    assert advs[0].min() >= 0 and advs[0].max() <= 1
    counts = [int(broken(net, adv, y).sum()) for adv in advs]
    assert 1 < counts[0] < 32 and abs(counts[0] - counts[1]) <= 5
    kept = ~broken(net, advs[0], y)
    assert torch.equal(advs[0][kept], x[kept])


@norms
def test_draws_follow_the_sample_not_the_batch(norm):
    """In fp64, whose rounding decides nothing."""
    net, x, y = weak_net(dtype=torch.float64)
    ids = torch.arange(len(x)) + 100
    whole = fastard.square(net, x, y, norm, EPS[norm], 30, ids=ids, seed=7)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for part in (order[:5], order[5:6], order[6:]):
        adv = fastard.square(net, x[part], y[part], norm, EPS[norm], 30, ids=ids[part], seed=7)
        torch.testing.assert_close(adv, whole[part], rtol=0, atol=1e-9)
    assert not torch.equal(fastard.square(net, x, y, norm, EPS[norm], 30, ids=ids), whole)


class _NoReads(TorchDispatchMode):
    """Refuses what makes a device wait for the host."""

    refused = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.item"}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func.overloadpacket)
        assert name not in self.refused, name
        if name == "aten.index":
            assert all(i is None or i.dtype != torch.bool for i in args[1]), name
        return func(*args, **(kwargs or {}))


@norms
def test_nothing_is_read_within_a_block(norm, monkeypatch):
    net, x, y = weak_net()
    run, blocks = search._Batch.run, []

    def watched(self, draws, offset, sides):
        with _NoReads():
            run(self, draws, offset, sides)
        blocks.append((len(self.x), len(sides)))

    monkeypatch.setattr(search._Batch, "run", watched)
    fastard.square(net, x, y, norm, EPS[norm], 45)
    assert [steps for _, steps in blocks] == [10, 10, 10, 10, 5]
    assert blocks[0][0] > blocks[-1][0] > 0, "solved rows leave between blocks"


@norms
def test_padded_rows_of_a_bucket_change_nothing(norm, monkeypatch):
    """As on devices that record graphs, where a batch keeps to a few sizes."""
    net, x, y = weak_net(dtype=torch.float64)
    setting = Squares(Norm[norm], EPS[norm], 60)

    def logits(v):
        with torch.no_grad():
            return net(v)

    def run(compacts):
        draws, sizes = KeyedSquares(0, 0), []

        def asked(v):
            sizes.append(len(v))
            return logits(v)

        reads, ids = Reads(asked, asked), torch.arange(len(x))
        return search.square(reads, x, y, ids, setting, draws, compacts), sizes

    plain, sizes = run(False)
    assert set(sizes) == {len(x)}
    exactly = search.compacted
    monkeypatch.setattr(search, "compacted", lambda left, exact: exactly(left, False))
    padded, sizes = run(True)
    assert len(set(sizes)) > 1 and set(sizes) <= {16, 12, 8, 6, 4, 3, 2, 1}
    torch.testing.assert_close(padded.best, plain.best, rtol=0, atol=1e-9)
    assert torch.equal(padded.queries, plain.queries)
    assert torch.equal(padded.margin > 0, plain.margin > 0)


def test_windows_shrink_as_the_official_ones(official):
    for rescaled in (False, True):
        attack = official.SquareAttack(None, n_queries=5000, eps=1.0, resc_schedule=rescaled)
        setting = Squares(Norm.L2, 1.0, 5000, rescaled=rescaled)
        assert all(setting.share(i) == attack.p_selection(i) for i in range(5000))
    sides = [Squares(Norm.Linf, 1.0).side(i, torch.empty(1, 3, 32, 32)) for i in (0, 11, 4999)]
    assert sides == [29, 20, 3]
    odd = {Squares(Norm.L2, 1.0).side(i, torch.empty(1, 3, 32, 32)) % 2 for i in range(0, 5000, 7)}
    assert odd == {1} and Squares(Norm.L1, 1.0).side(0, torch.empty(1, 1, 40, 8)) == 8


class _Steps(nn.Module):
    """A model without a gradient: it sees 17 grey levels."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((16 * x).round() / 16)


@norms
def test_a_model_without_gradient_is_broken(norm):
    net, x, y = weak_net(n=32)
    steps = _Steps(net)
    y = steps(x).argmax(1)
    adv, info = fastard.square(steps, x, y, norm, 2 * EPS[norm], 200, return_info=True)
    assert broken(steps, adv, y).sum() > 8
    assert torch.equal(info.robust, ~broken(steps, adv, y))
    gradient = fastard.pgd_ce(steps, x, y, 2 * EPS["Linf"], steps=10, random_start=False)
    assert not broken(steps, gradient, y).any()


@norms
@pytest.mark.parametrize("shape", [(20, 15), (15, 21)])
def test_images_that_are_not_square(norm, shape):
    net, x, y = weak_net(shape, channels=1)
    adv, info = fastard.square(net, x, y, norm, EPS[norm], 40, return_info=True)
    assert (size(adv, x, norm) <= EPS[norm] * (1 + 1e-5)).all()
    assert adv.min() >= 0 and adv.max() <= 1
    assert 1 < (~info.robust).sum() < 16 and not info.robust[0]
    assert info.queries[0] == 0 and info.queries[info.robust].eq(41).all()
    assert (info.margin[~info.robust] <= 0).all() and (info.margin[info.robust] > 0).all()


def test_a_model_that_writes_into_its_input():
    class Writes(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            x.mul_(1.0).sub_(0.5)
            return self.net(x + 0.5)

    net, x, y = weak_net()
    before = x.clone()
    wanted = fastard.square(net, x, y, "Linf", 0.03, 40, engine=False)
    adv = fastard.square(Writes(net), x, y, "Linf", 0.03, 40, engine=False)
    assert torch.equal(x, before)
    torch.testing.assert_close(adv, wanted, rtol=0, atol=1e-5)


def test_a_models_own_normaliser_is_written_into_the_window():
    net, x, y = weak_net()
    mean, std = [0.2, 0.3, 0.4], [0.5, 0.6, 0.7]
    plain = fastard.models.Normalized(net, mean, std).eval()
    y = plain(x).argmax(1)
    advs = [
        fastard.square(plain, x, y, "Linf", 0.03, 40, engine=engine) for engine in (True, False)
    ]
    given = fastard.square(net, x, y, "Linf", 0.03, 40, mean=mean, std=std)
    assert broken(plain, given, y).any()
    for adv in advs:
        assert (broken(plain, adv, y) != broken(plain, given, y)).sum() <= 1


def test_half_precision_layout_and_the_samples_own_radius():
    net, x, y = weak_net()
    eps = torch.linspace(0, 0.06, len(x))
    half = x.to(torch.float16).contiguous(memory_format=torch.channels_last)
    adv = fastard.square(net, half, y, "Linf", eps, 40)
    assert adv.dtype == torch.float16
    assert adv.is_contiguous(memory_format=torch.channels_last)
    assert (size(adv, half, "Linf") <= eps + 1e-6).all() and not torch.equal(adv, half)
    nothing = fastard.square(net, x[:0], y[:0], return_info=True)
    assert nothing[0].shape == (0, 3, 15, 15) and nothing[1].robust.shape == (0,)


def test_verbose_says_how_far_it_is(capsys):
    net, x, y = weak_net()
    for compat in (None, "official"):
        attack = SquareAttack(net, n_queries=10, eps=0.05, verbose=True)
        attack.compat = compat
        attack.perturb(x, y)
        said = capsys.readouterr().out
        assert "10 - success rate=" in said and "restart 0 - robust accuracy: " in said


@pytest.mark.parametrize(
    "change, match",
    [
        ({"loss": "dlr"}, "loss"), ({"compat": "oficial"}, "compat"), ({"p_init": 0}, "p_init"),
        ({"n_queries": 0}, "n_queries"), ({"norm": "L3"}, "norm"), ({"eps": -1.0}, "eps"),
        ({"ids": torch.arange(3)}, "ids"), ({"y": torch.full((16,), 5)}, "y"),
        ({"x": torch.rand(16, 3, 4, 9), "norm": "L2"}, "5 pixels"),
        ({"x": torch.rand(16, 12)}, "x must be a batch"),
        ({"compat": "official", "clip_max": 2.0}, "box"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(change, match):
    net, x, y = weak_net()
    with pytest.raises((TypeError, ValueError), match=match) as refusal:
        fastard.square(net, **{"x": x, "y": y, **change})
    assert str(refusal.value).count("\n") == 0


def test_the_class_refuses_what_it_cannot_do():
    net, x, y = weak_net()
    for change, match in [({}, "eps"), ({"eps": 0.1, "loss": "dlr"}, "loss"),
                          ({"eps": 0.1, "norm": "L7"}, "norm")]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            SquareAttack(net, **change).perturb(x, y)
    for images, labels, match in [(x, y + 5, "y"), (x[0], y, "x must"), (2 * x, y, "x ")]:
        with pytest.raises(ValueError, match=match):
            SquareAttack(net, eps=0.1).perturb(images, labels)


def test_found_rows_go_back_to_their_places():
    whole = Found(torch.zeros(3, 1), torch.zeros(3), torch.zeros(3), torch.zeros(3))
    part = whole.rows(torch.tensor([2]))
    part.margin += 1
    whole.put(torch.tensor([2]), part)
    assert whole.margin.tolist() == [0, 0, 1]
