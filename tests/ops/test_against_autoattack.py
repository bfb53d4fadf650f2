"""The L2 and L1 steps against AutoAttack's own formulas and code."""

from __future__ import annotations

import pytest
import torch

from benchmarks import published
from fastard import ops
from tests.ops.cases import StepCase, step_inputs


def inputs(shape=(6, 3, 16, 16)):
    return step_inputs(StepCase("L2", torch.float32, "contiguous", shape))


@pytest.mark.parametrize("alpha", [0.01, 0.3, 5.0])
def test_l2_step(alpha):
    x_adv, grad, x = inputs()
    wanted = published.l2_step(x_adv, grad, x, 0.5, alpha)
    torch.testing.assert_close(
        ops.pgd_step_(x_adv, grad, x, 0.5, alpha, "L2"), wanted, rtol=0, atol=2e-7
    )


@pytest.mark.parametrize("eps, alpha", [(2.0, 0.7), (12.0, 3.0), (0.1, 30.0), (1000.0, 500.0)])
def test_l1_step(eps, alpha):
    pytest.importorskip("pyautoattack", reason="pyautoattack is not installed")
    x_adv, grad, x = inputs()
    wanted = published.l1_step(x_adv, grad, x, eps, alpha)
    got = ops.pgd_step_(x_adv, grad, x, eps, alpha, "L1")
    torch.testing.assert_close(got, wanted, rtol=0, atol=5e-6)
