"""Recorded attacks equal unrecorded ones, bit for bit, whatever changed since they were recorded.

On the CPU a tape of operators stands in for a CUDA graph: what an operator was given when it was
recorded it reads again at each replay, where it lies.
"""

from __future__ import annotations

import copy
import gc
import warnings

import pytest
import torch
from torch import nn

import fastard
from fastard import models
from fastard.engine import Inference, Program, capture
from fastard.engine.recorder import HostRead, NoHostReads, beside, rejoined
from fastard.engine.recorder import recorder as of_device
from tests.engine.networks import images, tiny
from tests.engine.oracle import lived_in
from tests.engine.tape import Tape, TapeRecorder, stand_in
from tests.engine.test_sharing import together

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)


@pytest.fixture
def recorder(monkeypatch) -> TapeRecorder:
    return stand_in(monkeypatch)


def small(seed: int = 0, classes: int = 10) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(96, classes))  # fmt: skip
    return lived_in(net, images(8)[0])


def data(count: int = 4, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, 8, 8, generator=g)
    return x, torch.randint(0, 10, (count,), generator=g), torch.randn(count, 10, generator=g)


def target_of(loss: str, y, t):
    return t if loss in ("kl", "mixture") else y


def held(device: str = "cpu") -> int:
    return capture.graphs_of(torch.device(device)).count


def same(model, recorder, x, target, labels=None, seed=0, replays=True, **options):
    """A call through the functions that keep nothing, recorded or replayed, and one that is not."""
    before = recorder.replayed
    torch.manual_seed(seed)
    attack = fastard.PGD(model, **options)
    got = attack(x, target, labels)
    after = torch.get_rng_state()
    torch.manual_seed(seed)
    wanted = fastard.PGD(model, capture="never", **options)(x, target, labels)
    if isinstance(got, tuple):
        assert torch.equal(got[1].loss, wanted[1].loss)
        assert torch.equal(got[1].broken, wanted[1].broken)
        got, wanted = got[0], wanted[0]
    assert torch.equal(got, wanted), attack.program.captured
    assert got.stride() == wanted.stride() and got.dtype == wanted.dtype
    assert torch.equal(after, torch.get_rng_state())
    if replays is not None:
        assert (recorder.replayed > before) == replays, attack.program.captured
    return got


ATTACKS = {
    "kl": {},
    "kl, uniform": {"random_start": "uniform"},
    "kl, targeted, warm": {"targeted": True, "temperature": 2.0},
    "ce": {"loss": "ce"},
    "ce, L2": {"loss": "ce", "norm": "L2", "eps": 1.0, "alpha": 0.3},
    "ce, L1": {"loss": "ce", "norm": "L1", "eps": 5.0, "alpha": 2.0},
    "margin": {"loss": "margin", "kappa": 0.5, "random_start": False},
    "dlr": {"loss": "dlr"},
    "dlr, targeted": {"loss": "dlr", "targeted": True},
    "mixture": {"loss": "mixture", "mix": 0.3},
    "mean and std": {"mean": MEAN, "std": STD},
    "mean and std, L2": {"mean": MEAN, "std": STD, "norm": "L2", "eps": 1.0, "alpha": 0.3},
    "restarts": {"loss": "ce", "n_restarts": 3},
    "info": {"return_info": True},
    "info of restarts": {"loss": "ce", "n_restarts": 2, "return_info": True},
    "another box": {"clip_min": 0.1, "clip_max": 0.8, "clip_start": True},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_new_inputs_at_every_call(name, recorder):
    model, options = small(), {"loss": "kl", "steps": 2, **ATTACKS[name]}
    low, high = options.get("clip_min", 0.0), options.get("clip_max", 1.0)
    for call in range(3):
        x, y, t = data(seed=call)
        labels = (y + 3) % 10 if name in ("mixture", "dlr, targeted") else None
        target = target_of(options["loss"], y, t)
        # The second restart is the second of its kind.
        again = call > 0 or "n_restarts" in options
        same(model, recorder, x.clamp(low, high), target, labels, call, again, **options)
    assert recorder.recorded == recorder.warmed == 1 and held() == 1


def test_other_radii_and_step_sizes_need_no_new_graph(recorder):
    model, (x, _, t) = small(), data()
    for call, eps in enumerate((8 / 255, 0.1, 0.0, 0.5)):
        same(model, recorder, x, t, replays=call > 0, eps=eps, alpha=eps / 3, steps=2)
    assert recorder.recorded == 1
    for call in range(3):
        eps = torch.rand(4, generator=torch.Generator().manual_seed(call))
        same(model, recorder, x, t, replays=call > 0, eps=eps, alpha=eps / 2, steps=2)
    assert recorder.recorded == 2


def test_what_a_graph_depends_on(recorder):
    model, (x, _, t) = small(), data()
    variants = [
        {}, {"steps": 3}, {"norm": "L2"}, {"temperature": 2.0}, {"targeted": True},
        {"random_start": False}, {"clip_max": 1.5}, {"return_info": True}, {"clip_start": True},
        {"mean": MEAN, "std": STD}, {"mean": STD, "std": STD},
    ]  # fmt: skip
    for replays in (False, True, True):
        for options in variants:
            same(model, recorder, x, t, replays=replays, **{"steps": 1, **options})
    assert recorder.recorded == len(variants) == held()
    last = x.contiguous(memory_format=torch.channels_last)
    for images_, logits in (
        (last, t),
        (x[:2], t[:2]),
        (x, t.double()),
        (x, t[:, :1].expand(4, 10)),
    ):
        for call in range(3):
            same(model, recorder, images_, logits, replays=call > 0, steps=1)
    # Half images are attacked in fp32, those with gaps made dense: both as at first.
    same(model, recorder, x.half(), t, steps=1)
    same(model, recorder, torch.cat([x, x], 1)[:, :3], t, steps=1)
    same(model, recorder, x.double(), t, replays=False, steps=1)
    torch.use_deterministic_algorithms(True)
    try:
        same(model, recorder, x, t, replays=False, steps=1)
    finally:
        torch.use_deterministic_algorithms(False)


def in_place(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)


def through_data(model):
    for p in model.parameters():
        p.data.mul_(0.8)


def optimiser(model):
    model.train()
    model(images(8)[0]).square().mean().backward()
    torch.optim.SGD(model.parameters(), 0.1, fused=True).step()
    model.zero_grad()
    model.eval()


def replaced(model):
    state = {k: v * 1.2 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def other_data(model):
    for p in model.parameters():
        p.data = p.data * 1.3


def statistics(model):
    with torch.no_grad():
        model.train()(images(8)[0] * 2)
    model.eval()


class Opaque(nn.Module):
    """Parameters that are read where they lie, and a constant."""

    def __init__(self):
        super().__init__()
        self.norm, self.inner = nn.GroupNorm(3, 3), small()
        self.shift = nn.Parameter(torch.full((1, 3, 1, 1), 0.3))
        self.weight = nn.Parameter(torch.randn(96, 10))

    def forward(self, x):
        return self.inner(self.norm(x) + self.shift) + x.flatten(1)[:, :96] @ self.weight


@pytest.mark.parametrize("make", [small, Opaque], ids=["folded", "read where they lie"])
@pytest.mark.parametrize(
    "change", [in_place, through_data, optimiser, replaced, other_data, statistics]
)
def test_the_weights_are_the_live_ones(make, change, recorder):
    model = lived_in(make(), images(8)[0])
    x, _, t = data()
    for call in range(3):
        same(model, recorder, x, t, replays=call > 0, steps=2)
    for _ in range(2):
        change(model)
        for _ in range(2):
            got = same(model, recorder, x, t, replays=None, steps=2)
        fresh = fastard.PGD(copy.deepcopy(model), steps=2, capture="never")
        torch.manual_seed(0)
        assert torch.equal(got, fresh(x, t))
    assert recorder.replayed >= 4
    # Folded weights are found through a table, which is brought up to date where it lies.
    assert recorder.recorded == 1 or make is Opaque


def test_a_normaliser_of_the_model(recorder):
    model, (x, _, t) = models.Normalized(small(), MEAN, STD).eval(), data()
    for call in range(4):
        same(model, recorder, x, t, replays=call > 0, steps=2, norm="L2", eps=1.0, alpha=0.5)
        with torch.no_grad():
            model.mean.add_(0.1), model.std.mul_(1.5)
    assert recorder.recorded == 1


def test_results_are_nobody_elses(recorder):
    attack, (x, _, t) = fastard.PGD(small(), steps=2, return_info=True), data()
    results = [attack(x, t) for _ in range(4)]
    kept = [r[0].clone() for r in results]
    results[2][0].fill_(7), results[2][1].loss.fill_(7)
    again = attack(x * 0.5, t)
    assert all(torch.equal(a[0], b) for a, b in zip(results[:2], kept, strict=False))
    pointers = {t.data_ptr() for r in (*results, again) for t in (r[0], r[1].loss, r[1].broken)}
    assert len(pointers) == 15 and not torch.equal(again[0], kept[3])


def test_two_models_share_one_device(recorder):
    first, second, (x, y, t) = small(1), small(2), data()
    for call in range(4):
        same(first, recorder, x, t, seed=call, replays=call > 0, steps=2)
        same(second, recorder, x, y, seed=call, replays=call > 0, steps=2, loss="ce")
        x, t = x.flip(0), t * 0.9
    assert recorder.recorded == 2


def test_a_smaller_last_batch_costs_one_graph(recorder):
    model = small()
    for epoch in range(3):
        for at, count in enumerate((4, 4, 4, 3)):
            x, _, t = data(count, seed=at)
            again = epoch > 0 or at in (1, 2)
            same(model, recorder, x, t, replays=again, steps=1)
    assert recorder.recorded == 2


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


def test_a_pair(recorder):
    student, teacher = small(1), small(2)
    attack = fastard.PairPGD(student, teacher, steps=2, mean=MEAN, std=STD)
    plain = fastard.PairPGD(student, teacher, steps=2, mean=MEAN, std=STD, capture="never")
    for call in range(4):
        x, _, _ = data(seed=call)
        torch.manual_seed(call)
        got = attack(x)
        torch.manual_seed(call)
        assert torch.equal(got, plain(x))
        in_place(student if call % 2 else teacher)
    assert recorder.recorded == 1 and recorder.replayed == 3
    assert attack.explain().count("captured   one graph") == 2
    del teacher, attack, plain
    gc.collect(), gc.collect()
    assert held() == 0


@pytest.mark.parametrize("frozen", [False, True])
def test_inference(frozen, recorder):
    model = small()
    infer = Inference(model, frozen=frozen, mean=MEAN, std=STD)
    plain = Inference(model, frozen=frozen, mean=MEAN, std=STD, capture="never")
    results = []
    for call in range(4):
        x, _, _ = data(seed=call)
        results.append((infer(x), plain(x)))
        in_place(model)
    assert all(torch.equal(a, b) for a, b in results)
    assert recorder.recorded == 1 and "one graph" in infer.explain()
    x, _, _ = data()
    fresh = Inference(model, mean=MEAN, std=STD, capture="never")(x)
    assert torch.equal(fresh, infer(x)) != frozen
    if frozen:
        # Another's copies are of its own first call.
        assert torch.equal(Inference(model, frozen=True, mean=MEAN, std=STD)(x), fresh)
    first, second = infer(x), infer(x)
    assert first.data_ptr() != second.data_ptr()


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_under_the_callers_modes(around, recorder):
    model, (x, _, t) = small(), data()
    with around():
        x, t = x * 1.0, t * 1.0
        for call in range(3):
            got = same(model, recorder, x, t, replays=call > 0, steps=1)
    assert not got.is_inference() and not got.requires_grad


def test_threads_that_share_one_attack(recorder):
    model, (x, _, t) = small(), data()
    attack = fastard.PGD(model, steps=2, random_start=False)
    plain = fastard.PGD(model, steps=2, random_start=False, capture="never")
    cases = [(x.roll(k, 3), t.roll(k, 1)) for k in range(3)]
    wanted = [plain(*case) for case in cases]

    def work(k):
        assert torch.equal(attack(*cases[k]), wanted[k])
        assert torch.equal(fastard.pgd_kl(model, *cases[k], steps=2, random_start=False), wanted[k])

    assert together(*(lambda k=k: work(k) for k in range(3)), rounds=5) == []
    assert recorder.recorded == 1 and recorder.replayed > 10


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
    assert "captured   no: whole attacks and Inference alone" in Program(small()).explain()


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


def test_the_tape_is_a_graph():
    """It reads and writes the memory it was recorded with, and runs no Python again."""
    x, w = torch.rand(3), torch.rand(3)
    seen = []
    with Tape() as tape:
        y = (x * w).add_(1)[:2] * 2
        seen.append(len(tape.calls))
    x.fill_(2.0), w.fill_(3.0)
    tape.replay()
    assert y.tolist() == [14.0, 14.0] and seen == [3]


def test_networks_of_every_kind_of_layer(recorder):
    model, x, d = tiny()
    for call in range(3):
        same(model, recorder, x.roll(call, 0), d, replays=call > 0, steps=2)
    assert recorder.recorded == 1
