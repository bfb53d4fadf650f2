"""The engine on a CUDA device, and on the CPU along the way that a device takes."""

from __future__ import annotations

import contextlib
import copy
import gc

import pytest
import torch

import fastard
from fastard import ops, reference_layers
from fastard.engine import Inference, Program, capture, plan
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


@pytest.fixture
def graphs(monkeypatch):
    """A device's recordings, none yet; kernels that answer alike each time."""
    monkeypatch.setattr(capture, "_GRAPHS", {})
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield lambda: capture.graphs_of(torch.device("cuda", torch.cuda.current_device()))


def on_device(name="resnet18", count=8):
    model, x, _ = ours(name)
    x = x.repeat(2, 1, 1, 1)[:count].cuda()
    return model.cuda(), x, model(x).detach() + torch.randn(count, 10, device="cuda")


def both(model, x, t, seed=0, **options):
    """From equal noise: an attack that may be a graph, and one that is none."""
    results = []
    for choice in ("auto", "never"):
        torch.manual_seed(seed)
        results.append(fastard.pgd_kl(model, x, t, steps=3, capture=choice, **options))
    return results


def alike(pair, share=1e-3):
    """A sign flips with the last bit of a gradient near 0; else they are the same."""
    got, wanted = pair
    assert (got != wanted).float().mean() <= share


class TestDeviceCapture:
    pytestmark = gpu

    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
    def test_captured_equals_uncaptured(self, name, precision, graphs):
        model, x, t = on_device(name)
        share = 1e-3 if precision == "fp32" else 2e-2
        for call in range(5):
            alike(both(model, x, t, call, precision=precision, eps=0.01 * (call + 1)), share)
            x, t = x.flip(0), t * 1.1
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1.01)
        assert graphs().count == 1

    @pytest.mark.parametrize("options", [
        {"norm": "L2", "eps": 1.0, "alpha": 0.3}, {"norm": "L1", "eps": 8.0, "alpha": 2.0},
        {"random_start": "uniform"}, {"n_restarts": 2},
        {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.1)}, {"noise_device": "cpu"},
    ], ids=str)  # fmt: skip
    def test_settings(self, options, graphs):
        model, x, t = on_device("mobilenetv2")
        for call in range(4):
            got, wanted = both(model, x, t, call, precision="fp32", **options)
            assert (got - wanted).abs().mean() <= 1e-4
        assert graphs().count == 1

    def test_the_second_call_is_recorded_and_no_replay_waits(self, graphs):
        model, x, t = on_device()
        attack = fastard.PGD(model, steps=3, precision="bf16")
        said = []
        for _ in range(3):
            attack(x, t)
            said.append("one graph" in attack.program.explain())
        assert said == [False, True, True], attack.program.explain()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            attack(x, t)
            fastard.pgd_kl(model, x, t, steps=3, precision="bf16", eps=0.1)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_memory_does_not_grow(self, graphs):
        model, x, t = on_device()
        attack = fastard.PGD(model, steps=3)
        held = []
        for _ in range(20):
            attack(x, t)
            torch.cuda.synchronize()
            held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
        assert len(set(held[3:])) == 1, held

    def test_other_tensors_for_the_weights(self, graphs):
        model, x, t = on_device()
        for _ in range(3):
            alike(both(model, x, t))
        for _ in range(2):
            state = {k: v * 1.05 if v.is_floating_point() else v.clone()
                     for k, v in model.state_dict().items()}  # fmt: skip
            model.load_state_dict(state, assign=True)
            for _ in range(3):
                alike(both(model, x, t))

    def test_a_pair_on_two_streams(self, graphs):
        student, x, _ = on_device("mobilenetv2")
        teacher, _, _ = on_device("resnet18")
        pairs = [
            fastard.PairPGD(student, teacher, steps=3, precision="fp32", capture=c)
            for c in ("auto", "never")
        ]
        for call in range(5):
            results = []
            for attack in pairs:
                torch.manual_seed(call)
                results.append(attack(x))
            alike(results, 1e-2)
            x = x.flip(0)
        assert pairs[0].explain().count("captured   one graph") == 2, pairs[0].explain()

    def test_the_least_recently_used_goes_first(self, graphs, monkeypatch):
        model, x, t = on_device()
        monkeypatch.setattr(capture.Graphs.__init__, "__defaults__", (2,))
        for count in (8, 8, 7, 7, 6, 6, 8, 8, 7, 7):
            alike(both(model, x[:count], t[:count]))
            assert graphs().count <= 2
        del model
        gc.collect(), gc.collect()
        assert graphs().count == 0
        model, x, t = on_device("mobilenetv2")
        for _ in range(3):
            alike(both(model, x, t))
        assert graphs().count == 1

    def test_streams_of_the_callers(self, graphs):
        model, x, t = on_device()
        wanted = [both(model, x, t, k)[1] for k in range(6)]
        streams = [torch.cuda.Stream() for _ in range(2)]
        results = []
        for k in range(6):
            torch.manual_seed(k)
            stream = streams[k % 2]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                results.append(fastard.pgd_kl(model, x, t, steps=3))
        torch.cuda.synchronize()
        for pair in zip(results, wanted, strict=True):
            alike(pair)

    def test_inference(self, graphs):
        model, x, _ = on_device()
        for frozen in (False, True):
            infer = Inference(model, "fp32", frozen=frozen)
            for _ in range(4):
                torch.testing.assert_close(infer(x), model(x).detach(), rtol=1e-3, atol=1e-3)
                x = x.flip(0)
            assert "one graph" in infer.explain()

    def test_what_reads_back_falls_back(self, graphs):
        class Reads(torch.nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                return self.inner(x) + 0 * torch.masked_select(x, x > 2).sum()

        model, x, t = on_device()
        reads = Reads(model)
        with pytest.warns(RuntimeWarning, match="masked_select reads a value back"):
            for _ in range(3):
                alike(both(reads, x, t))
        assert graphs().count == 0
        for _ in range(3):
            alike(both(model, x, t))
        assert graphs().count == 1

    def test_a_capture_that_breaks_leaves_the_stream_usable(self, graphs, monkeypatch):
        model, x, t = on_device()
        monkeypatch.setattr(capture, "NoHostReads", lambda device: contextlib.nullcontext())
        here = torch.cuda.current_stream()
        inner = fastard.attacks.Start.place_

        def reads(*args):
            inner(*args)
            args[1].sum().item()

        monkeypatch.setattr(fastard.attacks.Start, "place_", reads)
        with pytest.warns(RuntimeWarning, match="an attack runs without a graph"):
            for _ in range(3):
                both(model, x, t)
        monkeypatch.setattr(fastard.attacks.Start, "place_", inner)
        assert torch.cuda.current_stream() == here
        other = x[:5].contiguous(), t[:5].contiguous()
        for _ in range(3):
            alike(both(model, *other))
        assert graphs().count == 1
