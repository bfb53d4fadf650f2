"""The six checks: each flag rises where the official code's does, and only there."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest
import torch
from torch import nn

import fastard
from fastard.autoattack import checks
from tests.autoattack.stand_ins import Mean, images, stand_in


class Randomized(Mean):
    def forward(self, x):
        return super().forward(x) + 0.1 * torch.randn(len(x), 10)


class Softmax(Mean):
    def forward(self, x):
        return super().forward(x).softmax(1)


class Dynamic(Mean):
    def forward(self, x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (step,) = torch.autograd.grad(super().forward(leaf).logsumexp(1).sum(), leaf)
        return super().forward(x + 1e-9 * step)


MODELS = {
    "it seems to be a randomized defense!": Randomized,
    "it seems that the output is a probability distribution": Softmax,
    "it seems to be a dynamic defense!": Dynamic,
}


@pytest.mark.parametrize("said", MODELS)
def test_a_defense_is_flagged_and_others_are_not(monkeypatch, tmp_path, said):
    stand_in(monkeypatch)
    with pytest.warns(checks.AutoAttackWarning, match=said) as caught:
        attack = fastard.AutoAttack(
            MODELS[said](), eps=0.1, seed=0, verbose=False, log_path=tmp_path / "log")  # fmt: skip
        attack.run_standard_evaluation(*images())
    assert len(attack.report.flags) == len(caught) == 1
    assert (tmp_path / "log").read_text() == f"Warning: {attack.report.flags[0]}\n"


def test_a_plain_model_raises_none(monkeypatch):
    stand_in(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack = fastard.AutoAttack(Mean(), eps=0.1, seed=0, verbose=False)
        attack.run_standard_evaluation(*images())
    assert attack.report.flags == []
    assert checks.dynamic(Mean(), images()[0]) is None


def test_rand_does_not_flag_random_models(monkeypatch):
    stand_in(monkeypatch)
    attack = fastard.AutoAttack(Randomized(), eps=0.1, seed=0, verbose=False, version="rand")
    attack.run_standard_evaluation(*images())
    assert attack.report.flags == []


def test_the_trace_is_put_back():
    seen = []
    before = sys.gettrace()
    sys.settrace(lambda *a: seen.append(1))
    try:
        mine = sys.gettrace()
        checks.dynamic(Mean(), images()[0])
        assert sys.gettrace() is mine
    finally:
        sys.settrace(before)


def test_square_that_finds_more_is_flagged(monkeypatch):
    stand_in(monkeypatch, {"square": {3}})
    attack = fastard.AutoAttack(Mean(), eps=0.11, seed=0, verbose=False)
    with pytest.warns(checks.AutoAttackWarning, match="decreased the robust accuracy of 10.00%"):
        attack.run_standard_evaluation(*images())


def test_zero_gradients():
    assert checks.zero_gradients(torch.ones(3, 4)) is None
    grad = torch.ones(3, 4)
    grad[1] = 0
    assert checks.zero_gradients(grad).startswith("there are 1 points with zero gradient! This")


def official(call) -> str | None:
    """What the packaged official check says."""
    lines = []

    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    logger = logging.Logger("checks")
    logger.addHandler(Lines())
    call(logger)
    return lines[0] if lines else None


@pytest.mark.parametrize("classes", [2, 3, 4, 9, 10])
@pytest.mark.parametrize(
    "attacks", [["apgd-ce"], ["apgd-dlr"], ["apgd-t"], ["fab-t"], ["apgd-t", "fab-t", "square"]]
)
def test_class_counts_read_as_the_official_ones(classes, attacks):
    theirs = pytest.importorskip("pyautoattack.checks")
    want = official(lambda log: theirs.check_n_classes(classes, attacks, 9, 9, logger=log))
    assert checks.n_classes(classes, attacks, 9, 9) == want


def test_texts_and_limits_are_the_official_ones():
    theirs = pytest.importorskip("pyautoattack.checks")
    x, y = images()
    for model in (Mean(), Softmax(), Dynamic()):
        theirs.funcs.update(dict.fromkeys(theirs.funcs, 0))
        want = official(lambda log, m=model: theirs.check_dynamic(m, x, logger=log))
        assert checks.dynamic(model, x) == want
        with torch.no_grad():
            want = official(lambda log, m=model: theirs.check_range_output(m, x, logger=log))
            assert checks.range_output(model(x)) == want
    for scale in (1e-5, 3e-4):
        torch.manual_seed(0)
        noisy = nn.Sequential(Mean(), nn.Dropout(0.0))
        noisy.forward = lambda x, s=scale: Mean()(x) * (1 + s * torch.randn(len(x), 10))
        want = official(lambda log, m=noisy: theirs.check_randomized(m, x, y, logger=log))
        torch.manual_seed(0)
        with torch.no_grad():
            assert checks.randomized(noisy, x, y) == want
    for square in (0.5, 0.4985, 0.49, 0.3):
        found = {"clean": 0.9, "apgd-ce": 0.5, "square": square}
        want = official(lambda log, f=found: theirs.check_square_sr(f, logger=log))
        assert checks.square_success(found) == want
    grad = torch.zeros(2, 3)
    want = official(lambda log: theirs.check_zero_gradients(grad, logger=log))
    assert checks.zero_gradients(grad) == want
