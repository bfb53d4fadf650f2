"""How long a recording is kept, and what is not recorded at all."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch
from torch import nn

import fastard
from fastard.engine import Inference, Program, capture
from fastard.engine.recorder import HostRead, NoHostReads, beside, rejoined
from fastard.engine.recorder import recorder as of_device
from tests.engine.recorded import data, held, same, small
from tests.engine.tape import TapeRecorder, stand_in


@pytest.fixture
def recorder(monkeypatch) -> TapeRecorder:
    return stand_in(monkeypatch)


def test_the_least_recently_used_goes_first(recorder, monkeypatch):
    monkeypatch.setattr(capture.Graphs.__init__, "__defaults__", (2,))
    model = small()
    batches = {n: (data(n)[0], data(n)[2]) for n in (2, 3, 4)}

    def both(n):
        same(model, recorder, *batches[n], replays=None, steps=1)

    for n in (2, 2, 3, 3, 2, 4, 4):
        both(n)
    assert recorder.recorded == 3 and held() == 2
    both(2), both(4)
    assert recorder.recorded == 3
    both(3)
    assert recorder.recorded == 3, "an attack that made way is recorded at its second call again"
    both(3)
    assert recorder.recorded == 4 and held() == 2


def test_graphs_go_with_their_model(recorder):
    model, other, (x, _, t) = small(1), small(2), data()
    for call in range(2):
        same(model, recorder, x, t, replays=call > 0, steps=1)
        same(other, recorder, x, t, replays=call > 0, steps=1)
    assert held() == 2
    model[2] = nn.SiLU()
    same(model, recorder, x, t, replays=False, steps=1)
    assert held() == 1
    same(model, recorder, x, t, replays=True, steps=1)
    assert held() == 2
    # Dropped at once, though an object that attacked it remembers the program.
    attack = fastard.PGD(model, steps=1, capture="never")
    attack(x, t)
    model[2] = nn.ReLU6()
    Inference(model)(x)
    assert held() == 1 and attack.program.made.plan is not None
    for call in range(2):
        same(model, recorder, x, t, replays=call > 0, steps=1)
    del model, attack
    gc.collect(), gc.collect()
    assert held() == 1
    known = capture.graphs_of(torch.device("cpu"))
    assert len(known._watched) == len(known._known) == 1


def test_a_capture_that_fails_is_said_once(recorder):
    model, (x, _, t) = small(), data()
    recorder.fails = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
    same(model, recorder, x, t, replays=False, steps=1)
    with pytest.warns(RuntimeWarning, match="without a graph: .*CUDA out of memory"):
        same(model, recorder, x, t, replays=False, steps=1)
    recorder.fails = None
    attack = fastard.PGD(model, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(model, recorder, x, t, replays=False, steps=1)
        attack(x, t)
    assert "captured   no: it could not be recorded (CUDA out of memory" in attack.program.explain()
    assert recorder.recorded == 0


def test_a_capture_that_fails_beside_an_exception_of_the_caller(recorder):
    model, (x, _, t) = small(1), data()
    fastard.pgd_kl(model, x, t, steps=2)
    recorder.fails = RuntimeError("the recording broke")
    try:
        raise KeyError("the caller's")
    except KeyError:
        with pytest.warns(RuntimeWarning, match="the recording broke") as said:
            fastard.pgd_kl(model, x, t, steps=2)
    assert "the caller's" not in str(said[0].message)


def test_a_target_with_a_graph_is_not_kept(recorder):
    model, (x, _, t) = small(1), data()
    leaf = t.clone().requires_grad_()
    for _ in range(3):
        fastard.pgd_kl(model, x, leaf * 1.0, steps=2)
    states = capture.graphs_of(torch.device("cpu"))._known.values()
    (recording,) = [state.recording for state in states if state.recording is not None]
    assert not any(v.requires_grad for v in recording.inputs.values() if v is not None)


def test_an_exception_leaves_no_trace(recorder):
    model, (x, _, t) = small().train(), data()
    model[1].eval()
    flags = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    attack = fastard.PGD(model, steps=1)
    attack(x, t)
    recorder.fails = KeyboardInterrupt()
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        attack(x, t)
    assert torch.equal(torch.get_rng_state(), state) and held() == 0
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    # Ending a recording that was interrupted raises as well.
    recorder.fails = RuntimeError("operation failed due to a previous error during capture")
    recorder.fails.__context__ = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        attack(x, t)
    recorder.fails = None
    same(model, recorder, x, t, steps=1)
    with pytest.raises(ValueError, match="one column per class"):
        attack(x, torch.randn(4, 7)), attack(x, torch.randn(4, 7))
    assert not attack.program.is_running


class Reads(nn.Module):
    """Its forward looks at its values, which tracing does not see."""

    def __init__(self):
        super().__init__()
        self.inner = small()

    def forward(self, x):
        return self.inner(x) + 0 * torch.masked_select(x, x > 2).sum()


REFUSED = {
    "never": (small, {"capture": "never"}, "capture='never'"),
    "eager": (small, {"engine": False}, "engine=False"),
    "train mode": (small, {"mode": "train"}, "train-mode attacks run the module itself"),
    "user's loss": (small, {"loss": lambda z, t: (z * t).sum(1)}, "a loss of the caller's"),
    "a function": (lambda: lambda x: x.mean((2, 3)) @ torch.ones(3, 10), {},
                   "a function is not traced"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_recorded_says_why(name, recorder):
    make, options, why = REFUSED[name]
    x, _, t = data()
    attack = fastard.PGD(make(), steps=1, **options)
    for _ in range(3):
        attack(x, t)
    assert recorder.recorded == 0 and f"captured   no: {why}" in attack.program.explain()


def test_leaves_and_host_reads_are_not_recorded(recorder):
    x, _, t = data()
    hooked = small()
    hooked[0].register_forward_hook(lambda module, given, made: made)
    attack = fastard.PGD(hooked, steps=1)
    attack(x, t), attack(x, t)
    assert "captured   no: 0 runs as it is (it has hooks)" in attack.program.explain()
    attack = fastard.PGD(Reads(), steps=1)
    attack(x, t)
    assert attack.program.plan is None and attack.program.made.plan is not None
    with pytest.warns(RuntimeWarning, match="masked_select reads a value back"):
        attack(x, t)
    assert recorder.recorded == 0


def test_a_recording_of_the_callers_own(recorder):
    model, (x, _, t) = small(), data()
    same(model, recorder, x, t, replays=False, steps=1)
    recorder.why_busy = "the caller records a graph"
    same(model, recorder, x, t, replays=False, steps=1)
    recorder.why_busy = None
    same(model, recorder, x, t, replays=True, steps=1)


def test_on_the_cpu_nothing_is_recorded():
    attack, (x, _, t) = fastard.PGD(small(), steps=1), data()
    attack(x, t), attack(x, t)
    assert "captured   no: cpu has no graphs" in attack.program.explain()
    assert of_device(torch.device("cpu")) is None
    with beside(None):
        rejoined(None)


def test_capture_is_auto_or_never():
    with pytest.raises(ValueError, match="unknown capture 'alway'.* known: auto, never"):
        Program(small(), capture="alway")
    with pytest.raises(ValueError, match="unknown capture True"):
        fastard.PGD(small(), capture=True)
    assert "captured   no: PGD, PairPGD, Inference and the passes" in Program(small()).explain()


@pytest.mark.parametrize(
    "work",
    [lambda x: x.sum().item(), lambda x: bool(x.sum() > 0), lambda x: x.nonzero(),
     lambda x: x[x > 0], lambda x: torch.tensor(0.5), lambda x: torch.equal(x, x),
     lambda x: x.to("meta")],
)  # fmt: skip
def test_host_reads_are_found(work):
    x = torch.rand(3)
    with pytest.raises(HostRead), NoHostReads(x.device):
        work(x)
    at = torch.tensor([1])
    with NoHostReads(x.device):
        assert x[at].clone().fill_(0.5).shape == (1,)
