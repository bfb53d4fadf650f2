"""The engine on a CUDA device, and on the CPU along the way that a device takes."""

from __future__ import annotations

import copy

import pytest
import torch

import fastard
from fastard import ops, reference_layers
from fastard.engine import Inference, Program, plan
from fastard.reference_layers import ACTIVATIONS
from tests.engine.networks import ours, theirs, tiny
from tests.engine.oracle import answers, autograd, exact, reason, typical

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NETWORKS = ["resnet18", "mobilenetv2", "preactresnet18", "wrn-16-4"]


@pytest.mark.parametrize("name", NETWORKS)
def test_library_convolutions_with_an_epilogue_of_ours(name, monkeypatch):
    monkeypatch.setattr(plan, "onednn", lambda: (False, "as on a device"))
    monkeypatch.setattr(plan, "depthwise", lambda *_: False)
    model, x, d = ours(name)
    truth, got = exact(model, x, d), answers(Program(model), x, d)
    beside = autograd(model.to(memory_format=torch.channels_last), x, d)
    for k in range(2):
        assert typical(got[k], truth[k]) <= 2 * typical(beside[k], truth[k]) + 1e-6


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision, bound", [("fp32", 1e-4), ("tf32", 0.05), ("bf16", 0.3),
                                              ("fp16", 0.05)])  # fmt: skip
class TestDevice:
    pytestmark = gpu

    def test_logits_and_gradients(self, name, precision, bound):
        model, x, d = ours(name)
        truth = exact(model, x, d)
        program = Program(model.cuda(), precision)
        got = answers(program, x.cuda(), d.cuda())
        assert program.made.plan is not None, reason(program)
        assert got[0].dtype == torch.float32
        for k in range(2):
            assert typical(got[k].cpu(), truth[k]) <= bound

    def test_the_next_attack_is_on_the_live_model(self, name, precision, bound):
        model, x, d = ours(name)
        program = Program(model.cuda(), precision)
        answers(program, x.cuda(), d.cuda())
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * p.abs().mean() * torch.randn_like(p))
        truth = exact(copy.deepcopy(model).cpu(), x, d)
        got = answers(program, x.cuda(), d.cuda())
        assert typical(got[0].cpu(), truth[0]) <= bound

    def test_attack_is_as_strong_as_eager(self, name, precision, bound):
        model, x, _ = ours(name)
        model, x = model.cuda(), x.cuda()
        t = model(x).detach()
        own, eager = (
            fastard.pgd_kl(model, x, t, precision=p, engine=e, return_info=True)[1].loss
            for p, e in ((precision, True), ("fp32", False))
        )
        assert own.mean() >= 0.95 * eager.mean()


@pytest.mark.parametrize("name", ["vit_b_16", "convnext_tiny", "efficientnet_b0"])
class TestDeviceSegments:
    pytestmark = gpu

    def test_segments(self, name):
        model, x, d = theirs(name)
        truth = exact(model, x, d)
        program = Program(model.cuda(), "fp32")
        got = answers(program, x.cuda(), d.cuda())
        assert program.made.plan is not None, reason(program)
        assert typical(got[1].cpu(), truth[1]) <= 1e-3


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [3, 16])
class TestDeviceEpilogues:
    pytestmark = gpu

    def test_epilogues(self, act, dtype, layout, channels):
        g = torch.Generator().manual_seed(3)
        x, other, saved = (
            torch.randn(2, channels, 5, 8, generator=g).to(dtype).contiguous(memory_format=layout)
            for _ in range(3)
        )
        scale, shift = torch.randn(2, channels, generator=g)
        there = [t.cuda() for t in (x, scale, shift, other, saved)]
        close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
        torch.testing.assert_close(
            ops.epilogue(*there[:4], act).cpu(),
            reference_layers.epilogue(x, scale, shift, other, act), **close)  # fmt: skip
        torch.testing.assert_close(
            ops.epilogue_backward(there[0], there[4], there[1], there[3], act).cpu(),
            reference_layers.epilogue_backward(x, saved, scale, other, act), **close)  # fmt: skip
        torch.testing.assert_close(
            ops.epilogue_backward(
                there[0].float(), there[4], act=act, shift=there[2], extra=there[3]).cpu(),
            reference_layers.epilogue_backward(
                x.float(), saved, None, None, act, shift, other), **close)  # fmt: skip


class TestDeviceInference:
    pytestmark = gpu

    def test_inference(self):
        model, x, _ = tiny()
        wanted = model(x).detach()
        torch.testing.assert_close(
            Inference(model.cuda(), "fp32")(x.cuda()).cpu(), wanted, rtol=1e-4, atol=1e-4
        )
