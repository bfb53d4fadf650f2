"""The compiled program's paths that the drop-ins take on their own: equal to eager's in fp32."""

from __future__ import annotations

import pytest
import torch

import fastard
from fastard.compat import robust_overfitting, trades
from fastard.engine import Program
from fastard.models import Normalized
from tests.api.models import batch, small_net

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.2, 0.3)


def normalized() -> torch.nn.Module:
    """A model whose normaliser is folded into the program: gradients are not in pixels there."""
    return Normalized(small_net().eval(), MEAN, STD).eval()


def trades_images(engine: bool) -> torch.Tensor:
    # Not trades_loss itself: a hook that tells the images would keep the model from the engine.
    x, _, t = batch()
    return trades._l2_attack(Program(normalized(), engine=engine), x, t, 0.7, 5, True)


def rice_delta(engine: bool) -> torch.Tensor:
    x, y, _ = batch()
    return robust_overfitting.attack_pgd(
        normalized(), x, y, 0.7, 0.2, 5, 2, "l_2", mean=None, std=None, engine=engine
    )


def apgd_images(engine: bool) -> torch.Tensor:
    x, y, _ = batch()
    return fastard.apgd(normalized(), x, y, "L2", 0.7, 3, engine=engine, best_loss=True)


@pytest.mark.parametrize("attack", [trades_images, rice_delta, apgd_images])
def test_l2_attacks_of_a_folded_normaliser(attack):
    results = []
    for engine in (True, False):
        torch.manual_seed(3)
        results.append(attack(engine))
    torch.testing.assert_close(*results, rtol=0, atol=2e-3)
    assert (results[0] - results[1]).abs().mean() < 1e-5


def test_the_normaliser_is_folded():
    program, x = Program(normalized()), batch()[0]
    with program.running(x):
        assert program.plan is not None and program.plan.std is not None
