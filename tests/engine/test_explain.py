"""`explain()`: what a pass costs, its floor, the last measured time, each part's precision."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import fastard
from fastard.engine import Program, cost, explain
from fastard.engine.precision import cpu_bf16
from tests.api.models import batch, small_net
from tests.engine.networks import tiny


@pytest.fixture
def known_rates(monkeypatch):
    """A machine of 1 GFLOP/s and 1 GB/s; the test chooses which of the two bounds."""
    found = {"flops": 1e9, "bytes": 1e9}
    monkeypatch.setattr(explain, "rates", lambda plan, fast: cost.Rates(**found))
    return found


def plan_of(net: nn.Module, x: torch.Tensor, precision: str = "fp32"):
    program = Program(net, precision)
    with program.running(x):
        return program.plan


def by_hand(net: nn.Module, x: torch.Tensor) -> float:
    """FLOPs of an image's forward and input gradient, from the modules' own shapes."""
    total = 0.0

    def count(module, inputs, output):
        nonlocal total
        weights = module.weight[0].numel()
        total += 2 * 2 * output.numel() / len(output) * weights

    hooks = [m.register_forward_hook(count) for m in net.modules()
             if isinstance(m, (nn.Conv2d, nn.Linear))]  # fmt: skip
    net.eval()(x)
    for hook in hooks:
        hook.remove()
    return total


def test_flops_are_those_of_the_modules():
    net, (x, _, _) = small_net(), batch(4)
    assert cost.cost(plan_of(net, x)).flops == by_hand(net, x)


def test_a_half_precision_plan_moves_half_the_bytes():
    net, (x, _, _) = small_net(), batch(4)
    full = cost.cost(plan_of(net, x))
    if not cpu_bf16()[0]:
        pytest.skip(cpu_bf16()[1])
    half = cost.cost(plan_of(net, x, "bf16"))
    assert half.flops == full.flops and half.bytes == full.bytes / 2


@pytest.mark.parametrize("bound", ["FLOPs", "bytes"])
def test_cost_floor_and_last_time_are_shown(known_rates, bound):
    net, (x, _, logits) = small_net(), batch(4)
    work = cost.cost(plan_of(net, x))
    if bound == "bytes":
        known_rates["flops"] = 1e15
    attack = fastard.PGD(net, loss="kl", steps=3)
    attack(x, logits)
    text = attack.program.explain()
    assert f"cost       {work.flops / 1e9:.3g} GFLOP and {work.bytes / 1e6:.3g} MB" in text
    least = (work.flops if bound == "FLOPs" else work.bytes) / 1e9
    assert f"floor      {least * 1e3:.3g} ms an image by its {bound}" in text
    assert f"{least * 1e3 * 12:.3g} ms for the passes of the last running block" in text
    assert re.search(r"last +\d+\.\d ms in the last running block: 3 forwards, 3 gradients", text)


def test_autograds_pieces_are_named_as_not_counted():
    model, x, d = tiny()
    program = Program(model)
    program.forward(x)
    segments = "pieces:" in program.explain()
    assert ("autograd's pieces not counted" in program.explain()) == segments


def test_without_a_plan_nothing_is_estimated_and_the_time_is_shown():
    net, (x, _, logits) = small_net(), batch(4)
    attack = fastard.PGD(net, loss="kl", steps=2, engine=False)
    attack(x, logits)
    text = attack.program.explain()
    assert "eager autograd: engine=False" in text and "not estimated" in text
    assert "floor" not in text and "2 forwards, 2 gradients" in text
    assert "last" not in Program(net).explain()


def test_each_part_has_its_precision(monkeypatch):
    if not cpu_bf16()[0]:
        pytest.skip(cpu_bf16()[1])
    net, (x, _, _) = small_net(), batch(4)
    texts = {}
    for precision in ("fp32", "bf16"):
        program = Program(net, precision)
        program.forward(x)
        texts[precision] = program.explain()
    line = {p: re.search(r"parts +(.*)", text).group(1) for p, text in texts.items()}
    assert "2 convolutions in fp32" in line["fp32"] and "bf16" not in line["fp32"]
    assert "2 convolutions in bf16" in line["bf16"] and "linear layers in fp32" in line["bf16"]


def test_rates_are_measured_once_and_draw_no_random_number(monkeypatch):
    net, (x, _, _) = small_net(), batch(4)
    plan, state, calls = plan_of(net, x), torch.get_rng_state(), []
    least = cost._least
    monkeypatch.setattr(cost, "_least", lambda *a: calls.append(a) or least(*a))
    cost._rates.cache_clear()
    first = cost.rates(plan, None)
    assert first.flops > 0 and first.bytes > 0
    assert cost.rates(plan, None) is first and len(calls) == 2
    assert torch.equal(state, torch.get_rng_state())
