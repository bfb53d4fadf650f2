"""Every activation inside convolutions, depthwise ones, normalisations and linear layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastard import ops
from fastard.engine import Inference, Program, convolve, explain
from fastard.engine.layers import Activation
from fastard.engine.precision import cpu_bf16
from tests.engine.networks import images
from tests.engine.oracle import answers, autograd, eager, exact, lived_in, median, typical

ACTS = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU, "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"), "hardswish": nn.Hardswish,
}  # fmt: skip
acts = pytest.mark.parametrize("act", ACTS)
library = pytest.mark.skipif(not convolve.onednn()[0], reason=convolve.onednn()[1])


class Everywhere(nn.Module):
    """An activation behind each kind of layer, most values read twice."""

    def __init__(self, act) -> None:
        super().__init__()
        self.stem, self.same = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.depth, self.norm = nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(32)
        self.wide, self.narrow = nn.Linear(32, 24), nn.Linear(24, 32)
        self.head, self.act = nn.Linear(32, 10), act()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = self.act(x + self.same(x))
        y = self.act(self.depth(x))
        x = self.act(self.norm(torch.cat([x[:, :, 1:-1, 1:-1], y], 1)))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.act(tokens + self.narrow(self.act(self.wide(tokens))))
        return self.head(tokens.mean(1))


@pytest.fixture
def given(act):
    x, d = images(9)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return lived_in(Everywhere(ACTS[act]), images(9, count=8)[0]), x, d


@acts
@pytest.mark.parametrize("layout", ["auto", "contiguous"])
def test_gradients_beside_eagers(given, act, layout):
    model, x, d = given
    program = Program(model, "fp32", layout=layout)
    truth, beside = exact(model, x, d), eager(model, x, d)
    got = answers(program, x, d)
    assert program.made.plan is not None, program.made.reason
    # The normalisation's rounded scale and shift err alike everywhere; the mean over tokens, which
    # the logits see, keeps that.
    for k, times in ((0, 4), (1, 2)):
        assert median(got[k], truth[k]) <= times * max(median(e[k], truth[k]) for e in beside)
    layers = program.made.plan.network.layers
    assert not any(isinstance(layer, Activation) for layer in layers)
    assert f"6 activations ({act} x6) and 2 residual additions" in program.explain()


@acts
@pytest.mark.skipif(not cpu_bf16()[0], reason=cpu_bf16()[1])
def test_bf16_gradients_beside_autocasts(given, act):
    model, x, d = given
    truth, program = exact(model, x, d), Program(model, "bf16")
    got, beside = answers(program, x, d), answers(Program(model, "bf16", engine=False), x, d)
    assert program.made.plan is not None, program.made.reason
    for k in (0, 1):
        assert typical(got[k], truth[k]) <= 2 * typical(beside[k], truth[k])


@acts
def test_gradients_follow_one_forward_again(given, act):
    model, x, d = given
    program = Program(model, "fp32")
    _, wanted = autograd(model, x, d)
    with program.running(x):
        program.forward_feed(program.prepared(x))
        first = program.vjp(d, retain=True).clone()
        assert torch.equal(first, program.vjp(d))
    torch.testing.assert_close(first, wanted, rtol=1e-3, atol=1e-6)


@acts
@library
def test_inference_has_them_inside_the_convolution(given, act, monkeypatch):
    model, x, _ = given
    inference = Inference(model, "fp32")
    wanted = model.double()(x.double()).float().detach()
    model.float()
    torch.testing.assert_close(inference(x), wanted, rtol=1e-5, atol=1e-5)
    assert act not in convolve.refused_acts()
    passes, run = [], ops.epilogue
    monkeypatch.setattr(ops, "epilogue", lambda *a, **k: passes.append(a) or run(*a, **k))
    inference(x)
    # The normalisation and two linear layers; where the library has only ReLU behind a sum, that
    # one; where the own kernel has only masks, the depthwise convolution.
    assert len(passes) == 3 + (act != "relu") + (act not in ("relu", "relu6"))


@library
@pytest.mark.parametrize("act", ["gelu"])
def test_what_the_library_refuses_runs_apart(given, act, monkeypatch):
    def refused() -> dict[str, str]:
        return {act: "it does not know it"}

    model, x, _ = given
    for module in (convolve, explain):
        monkeypatch.setattr(module, "refused_acts", refused)
    inference = Inference(model, "fp32")
    torch.testing.assert_close(inference(x), model(x).detach(), rtol=1e-5, atol=1e-5)
    assert "gelu apart, oneDNN: it does not know it" in inference.explain()
