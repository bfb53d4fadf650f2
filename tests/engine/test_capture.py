"""Recorded attacks equal unrecorded ones, bit for bit, whatever changed since they were recorded.

On the CPU a tape of operators stands in for a CUDA graph: what an operator was given when it was
recorded it reads again at each replay, where it lies.
"""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

import fastard
from fastard import models
from fastard.engine import Inference
from tests.engine.networks import images, tiny
from tests.engine.oracle import lived_in
from tests.engine.recorded import MEAN, STD, data, held, in_place, same, small
from tests.engine.tape import Tape, TapeRecorder, stand_in
from tests.engine.test_sharing import together


@pytest.fixture
def recorder(monkeypatch) -> TapeRecorder:
    return stand_in(monkeypatch)


def target_of(loss: str, y, t):
    return t if loss in ("kl", "mixture") else y


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
