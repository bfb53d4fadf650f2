"""Evaluation attacks whose passes are recorded graphs find, to the bit, what they find without.

A tape of operators stands in for a CUDA graph (tests/engine/tape.py); what it records may read no
value back to the host.
"""

from __future__ import annotations

import pytest
import torch

import fastard
from fastard.api.search import EngineSearch
from fastard.attacks.apgd_losses import objective
from fastard.attacks.fab import Rows, Walk, hyperplane
from fastard.autoattack.apgd import APGDAttack, APGDAttack_targeted
from fastard.autoattack.fab import FABAttack_PT
from fastard.autoattack.square import SquareAttack
from fastard.engine import Program, capture
from fastard.engine.plan import Plan
from fastard.kinds import Norm
from tests.engine.recorded import MEAN, STD, data, held, in_place, small
from tests.engine.tape import TapeRecorder, stand_in

EPS = {"Linf": 0.05, "L2": 0.4, "L1": 3.0}
NORMS = pytest.mark.parametrize("norm", EPS)
NO_LOOKS = pytest.mark.filterwarnings("ignore:Zero gradient")


@pytest.fixture
def recorder(monkeypatch) -> TapeRecorder:
    return stand_in(monkeypatch)


def attacks(norm: str):
    """Each attack of the class interface, short."""
    common = {"norm": norm, "eps": EPS[norm], "seed": 3, "verbose": False}
    return {
        "apgd-ce": lambda net: APGDAttack(net, n_iter=12, n_restarts=2, loss="ce", **common),
        "apgd-dlr": lambda net: APGDAttack(net, n_iter=12, n_restarts=1, loss="dlr", **common),
        "apgd, eot": lambda net: APGDAttack(net, n_iter=6, n_restarts=1, eot_iter=2, **common),
        "apgd-t": lambda net: APGDAttack_targeted(
            net, n_iter=12, n_restarts=1, n_target_classes=3, **common),
        "fab": lambda net: FABAttack_PT(net, n_iter=8, n_restarts=2, **common),
        "fab-t": lambda net: FABAttack_PT(
            net, n_iter=8, n_restarts=1, n_target_classes=3, targeted=True, **common),
        "square": lambda net: SquareAttack(net, n_queries=40, n_restarts=1, **common),
    }  # fmt: skip


NAMES = tuple(attacks("Linf"))


def found(model, make, x, y, allowed: str):
    """x_adv and the passes counted."""
    attack = make(model)
    attack.search = EngineSearch(Program(model, "fp32", frozen=True, capture=allowed))
    return attack.perturb(x, y), attack.search.forwards, attack.search.gradients


@NO_LOOKS
@NORMS
@pytest.mark.parametrize("name", NAMES)
def test_classes(name, norm, recorder):
    model, (x, _, _) = small(), data(6)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    make = attacks(norm)[name]
    for call in range(2):
        if call:
            in_place(model)
        before = recorder.replayed
        got = found(model, make, x, y, "auto")
        assert recorder.replayed > before, "nothing ran from a recording"
        wanted = found(model, make, x, y, "never")
        assert torch.equal(got[0], wanted[0])
        assert got[1:] == wanted[1:]
    assert (got[0] != x).any()


FUNCTIONS = {
    "apgd": lambda *given, **o: fastard.apgd(*given, eps=0.05, steps=12, **o),
    "apgd, L1": lambda *given, **o: fastard.apgd(*given, norm="L1", eps=3.0, steps=12, **o),
    "fab": lambda *given, **o: fastard.fab(*given, steps=6, **o),
    "fab-t": lambda *given, **o: fastard.fab(
        *given, steps=6, targeted=True, n_target_classes=3, **o),
    "square": lambda *given, **o: fastard.square(*given, eps=0.05, n_queries=40, **o),
}  # fmt: skip


@pytest.mark.parametrize(
    "options", [{}, {"mean": MEAN, "std": STD}, {"precision": "bf16"}], ids=str
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, options, recorder, monkeypatch):
    model, (x, _, _) = small(), data(6)
    run = FUNCTIONS[name]
    y = model(x).argmax(1)
    for call in range(2):
        if call:
            in_place(model)
        torch.manual_seed(call)
        before = recorder.replayed
        got = run(model, x, y, **options)
        assert recorder.replayed > before, "nothing ran from a recording"
        with monkeypatch.context() as patch:
            patch.setattr(capture, "_obstacle", lambda *_: "not in this test")
            torch.manual_seed(call)
            assert torch.equal(got, run(model, x, y, **options))
    assert (got != x).any()


def test_weights_are_copied_once_an_attack_not_once_a_pass(recorder, monkeypatch):
    model, (x, _, _) = small(), data(6)
    y = model(x).argmax(1)
    fastard.apgd(model, x, y, eps=0.05, steps=3)
    renewed = []
    own = Plan.renew
    monkeypatch.setattr(Plan, "renew", lambda plan: renewed.append(plan) or own(plan))
    fastard.apgd(model, x, y, eps=0.05, steps=5)
    assert len(renewed) == 1


def test_a_whole_standard_evaluation(recorder):
    model, (x, _, _) = small(), data(6)
    y = model(x).argmax(1)
    both = []
    for allowed in ("auto", "never"):
        attack = fastard.AutoAttack(model, "Linf", 0.02, seed=0, verbose=False)
        attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = 6
        attack.square.n_queries = 30
        make = attack.make_search

        def made(random=False, make=make, allowed=allowed):
            search = make(random)
            search.program.capture = allowed
            return search

        attack.make_search = made
        x_adv = attack.run_standard_evaluation(x, y, bs=4)
        both.append((x_adv, attack.report))
    (a, of_a), (b, of_b) = both
    assert recorder.replayed > 20
    assert torch.equal(a, b) and of_a.broken_by == of_b.broken_by
    assert of_a.forwards == of_b.forwards and of_a.gradients == of_b.gradients


def search_of(model, **options):
    return EngineSearch(Program(model, "fp32", frozen=True, **options))


def test_a_replay_answers_no_vjp(recorder):
    model, (x, y, _) = small(), data(4)
    search, goal, seed = search_of(model), objective("ce", y), torch.ones(4, 10)
    with search.running(x):
        for _ in range(2):
            search.ascend(x, goal)
        search.forward(x)
        before = recorder.replayed
        search.ascend(x, goal)
        assert recorder.replayed == before + 1
        with pytest.raises(RuntimeError, match="vjp needs a forward before it"):
            search.vjp(seed)


def test_explained_are_the_passes_that_ran(recorder):
    model, (x, _, _) = small(), data(6)
    y = model(x).argmax(1)
    told = set()
    for _ in range(3):
        _, info = fastard.apgd(model, x, y, eps=0.05, steps=10, return_info=True)
        told |= {
            line.split(": ")[1] for line in info.program.splitlines() if line.startswith("last")
        }
    assert told == {"12 forwards, 11 gradients"}


def test_a_pass_without_memory_gets_that_of_recordings(recorder, monkeypatch):
    model, (x, y, _) = small(), data(4)
    search = search_of(model)
    with search.running(x):
        for _ in range(2):
            wanted = search.ascend(x, objective("ce", y))
        assert held() == 1
        own, failed = Program.forward, []

        def short(program, v):
            if held() and not failed:
                failed.append(len(v))
                raise torch.OutOfMemoryError("CUDA out of memory")
            return own(program, v)

        monkeypatch.setattr(Program, "forward", short)
        search.ascend(x[:3], objective("ce", y[:3]))
        assert failed == [3] and held() == 0
        assert torch.equal(search.ascend(x, objective("ce", y))[2], wanted[2])
        assert held() == 1


def test_many_classes_are_no_one_graph(recorder):
    model, (x, _, _) = small(classes=40), data(4)
    y = model(x).argmax(1)
    search, walk = search_of(model), Walk(Norm.Linf, 5)
    with search.running(x):
        search.logits(x)
        for _ in range(3):
            hyperplane(search, Rows.begun(x, y, None, x), walk.norm)
        assert search.program.captured == "no: a gradient for each of 40 classes"
        assert search.gradients == 3 * 39 * len(x)
        goals = (y + 1) % 40
        for _ in range(3):
            hyperplane(search, Rows.begun(x, y, goals, x), walk.norm)
        assert search.program.captured.startswith("one graph")


def test_the_model_is_walked_once_a_running_block(recorder, monkeypatch):
    model, (x, _, _) = small(), data(6)
    y = model(x).argmax(1)
    fastard.apgd(model, x, y, eps=0.05, steps=3)
    walks, own = [], Plan.reads
    monkeypatch.setattr(Plan, "reads", lambda plan: walks.append(plan) or own(plan))
    fastard.apgd(model, x, y, eps=0.05, steps=20)
    assert len(walks) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@NORMS
@pytest.mark.parametrize("name", NAMES)
def test_classes_on_a_device(name, norm):
    model, (x, _, _) = small().cuda(), data(12)
    x = x.cuda()
    y = model(x).argmax(1)
    make = attacks(norm)[name]
    graphs = capture.graphs_of(x.device)
    before = graphs.count
    got = [found(model, make, x, y, allowed) for allowed in ("auto", "auto", "never")]
    assert graphs.count > before
    for a in got[:2]:
        assert torch.equal(a[0], got[2][0]) and a[1:] == got[2][1:]
