"""The CUDA recorder's own steps, with stand-ins for streams and graphs: order, pool, no races."""

from __future__ import annotations

import pytest
import torch

import fastard
from fastard.engine import gradient
from tests.engine.recorded import data, held, same, small
from tests.engine.streams import stand_in_cuda


@pytest.fixture
def cuda(monkeypatch):
    made = stand_in_cuda(monkeypatch)
    made.replayed = 0
    return made


def pair(student, teacher, capture="auto"):
    return fastard.PairPGD(student, teacher, steps=2, mean=(0.5,) * 3, std=(0.2,) * 3,
                           capture=capture)  # fmt: skip


def test_attacks_by_the_cuda_recorder(cuda):
    first, second, (x, _, t) = small(1), small(2), data()
    for call in range(3):
        for model in (first, second):
            same(model, cuda, x, t, seed=call, replays=None, steps=2)
    graphs = [entry for entry in cuda.log if isinstance(entry, tuple)]
    assert len(graphs) == 2 and graphs[0] == graphs[1], "one pool, one stream"
    assert graphs[0][2] == "thread_local"
    # x, eps, alpha, target, noise, the folded weights and their table, for each of four replays.
    assert cuda.log.count("replay") == 4 and cuda.log.count("kept") == 28
    began = cuda.log.index(graphs[0])
    assert cuda.log[began - 1 : began + 2] == [
        "random state: a capture's", graphs[0], "random state: the caller's"
    ], "nobody else's draws fall into the capture"  # fmt: skip
    assert len(cuda.now) == 1
    for model in (first, second):
        model[2] = torch.nn.SiLU()
        same(model, cuda, x, t, replays=None, steps=2)
    assert held() == 0
    same(first, cuda, x, t, replays=None, steps=2)
    last = [entry for entry in cuda.log if isinstance(entry, tuple)][-1]
    assert held() == 1 and last[0] != graphs[0][0], "no graph of the old pool is left"


def test_a_pair_runs_on_two_streams_without_a_race(cuda):
    student, teacher = small(1), small(2)
    attack, plain = pair(student, teacher), pair(student, teacher, "never")
    x, _, _ = data()
    attack(x)
    for call in range(2):
        torch.manual_seed(call)
        with cuda.races:
            got = attack(x.roll(call, 0))
        torch.manual_seed(call)
        assert torch.equal(got, plain(x.roll(call, 0)))
    assert cuda.log.count("replay") == 2 and cuda.races.found == []
    # The caller's, two of the warm-up, two of the recording.
    assert len(cuda.races.used) == 5


@pytest.mark.parametrize("missing", ["beside", "rejoined"])
def test_a_race_is_found(cuda, missing, monkeypatch):
    def without_waiting(side):
        return cuda.stream(side)

    stand_ins = {"beside": without_waiting, "rejoined": lambda side: None}
    monkeypatch.setattr(gradient, missing, stand_ins[missing])
    attack, (x, _, _) = pair(small(1), small(2)), data()
    attack(x)
    with cuda.races:
        attack(x)
    assert cuda.races.found


def test_a_capture_that_breaks_puts_the_stream_back(cuda):
    model, (x, _, t) = small(), data()
    cuda.breaks = True
    same(model, cuda, x, t, replays=None, steps=1)
    here = cuda.now[-1]
    with pytest.warns(RuntimeWarning, match="previous error during capture"):
        same(model, cuda, x, t, replays=None, steps=1)
    assert cuda.now[0] is here and held() == 0
