"""What only a CUDA device can show of the operators: graphs, streams, devices, huge tensors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from fastard import ops, reference
from tests.ops.cases import NORMS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

Inputs = dict[str, torch.Tensor]
# Calls an operator on its inputs' values, which it leaves as they are.
Call = Callable[[Inputs], tuple[torch.Tensor, ...]]


def inputs(name: str, seed: int) -> Inputs:
    """Other values for each seed; large ones take the kernels' other ways (clusters, blocks)."""
    g = torch.Generator("cuda").manual_seed(seed)
    large = name.endswith("large")
    if name.startswith(("logit_loss", "distill_kl")):
        classes = 1030 if large else 100
        z, t = torch.randn(2, 37, classes, generator=g, device="cuda") * 3
        labels = torch.randint(0, classes, (37,), generator=g, device="cuda")
        return {"z": z, "t": t, "labels": labels}
    side = 224 if large else 33
    x, noise = torch.rand(2, 4, 3, side, side - 1, generator=g, device="cuda")
    scale = torch.rand(3, 4, generator=g, device="cuda")
    return {
        "x_adv": (x + 0.02 * noise).clamp(0, 1), "x": x, "noise": noise, "eps": scale[0] * 0.5,
        "alpha": scale[1] * 0.1, "radius": scale[2].contiguous(),
    }  # fmt: skip


def step(norm: str, a: Inputs) -> tuple[torch.Tensor, ...]:
    feed = torch.empty_like(a["x"], dtype=torch.bfloat16)
    mean, std = torch.full((3,), 0.5, device="cuda"), torch.full((3,), 0.25, device="cuda")
    x_adv = a["x_adv"].clone()
    options = {"feed": feed, "mean": mean, "std": std}
    ops.pgd_step_(x_adv, a["noise"] - 0.5, a["x"], a["eps"], a["alpha"], norm, **options)
    return x_adv, feed


def start(kind: str, norm: str, a: Inputs) -> tuple[torch.Tensor, ...]:
    out = torch.empty_like(a["x"])
    return (
        ops.random_start_(out, a["x"], a["noise"], a["eps"], kind, norm, radius=a["radius"]),
    )  # fmt: skip


def distilled(a: Inputs) -> tuple[torch.Tensor, ...]:
    z, t = (a[name].clone().requires_grad_() for name in ("z", "t"))
    with torch.enable_grad():
        loss = ops.distill_kl(z, t, 2.0, log_floor=1e-5)
    return loss.detach(), *torch.autograd.grad(loss, (z, t))


def lost(kind: str, a: Inputs) -> tuple[torch.Tensor, ...]:
    soft = kind in ("kl", "mixture")
    labels = a["labels"] if kind == "mixture" else None
    return ops.logit_loss(
        a["z"], a["t"] if soft else a["labels"], kind, labels=labels, teacher_grad=kind == "kl"
    )


CALLS: dict[str, Call] = {"random_start_ gaussian": partial(start, "gaussian", "Linf")}
for size in ("", " large"):
    for norm in NORMS:
        CALLS[f"pgd_step_ {norm}{size}"] = partial(step, norm)
        CALLS[f"random_start_ uniform {norm}{size}"] = partial(start, "uniform", norm)
    for kind in ("kl", "ce", "mixture", "margin", "dlr"):
        CALLS[f"logit_loss {kind}{size}"] = partial(lost, kind)
    CALLS[f"distill_kl{size}"] = distilled
calls = pytest.mark.parametrize("name", CALLS)


def assert_same(got: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]) -> None:
    """Bit for bit: every operator is deterministic."""
    for ours, exact in zip(got, wanted, strict=True):
        assert torch.equal(ours, exact)


def captured(call: Call, held: Inputs) -> tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, ...]]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = call(held)
    return graph, out


@calls
def test_a_graph_replays_with_changing_values(name):
    held = inputs(name, 0)
    CALLS[name](held)
    graph, out = captured(CALLS[name], held)
    for seed in (1, 2, 3):
        fresh = inputs(name, seed)
        for key, value in fresh.items():
            held[key].copy_(value)
        graph.replay()
        assert_same(out, CALLS[name](fresh))


def capture_everything_at_first_use() -> None:
    for name, call in CALLS.items():
        held = inputs(name, 0)
        graph, out = captured(call, held)
        graph.replay()
        assert_same(out, call(held))


def test_the_first_use_may_be_inside_a_capture():
    """What a kernel asks about itself, it then asks there; in a process that has used none."""
    backends = {name: ops.backend(name, "cuda") for name in ("pgd_step_", "distill_kl")}
    if any(found.name != "native" for found in backends.values()):
        pytest.skip(f"compiled kernels only, and these are {backends}")
    code = "from tests.ops import test_cuda as t; t.capture_everything_at_first_use()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr


@calls
def test_on_another_stream(name):
    fresh = inputs(name, 4)
    wanted = CALLS[name](fresh)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = {key: value * 1 for key, value in fresh.items()}
        got = CALLS[name](late)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same(got, wanted)


@calls
def test_same_bits_in_every_run(name):
    fresh = inputs(name, 5)
    wanted = CALLS[name](fresh)
    for _ in range(20):
        assert_same(CALLS[name](fresh), wanted)


@pytest.mark.parametrize("rows, classes", [(1, 10), (8192, 10), (1000, 1000), (600, 21843)])
def test_distill_kl_sums_in_one_order(rows, classes):
    g = torch.Generator("cuda").manual_seed(6)
    z, t = torch.randn(2, rows, classes, generator=g, device="cuda") * 3
    losses = torch.stack([ops.distill_kl(z, t) for _ in range(20)])
    assert (losses == losses[0]).all()
    exact = reference.distill_kl(z.double(), t.double())[0].sum() / rows
    torch.testing.assert_close(losses[0].double(), exact, rtol=2e-6, atol=0)


def test_distill_kl_on_two_streams_at_once():
    """Each stream counts its blocks with a ticket of its own."""
    fresh = [inputs("distill_kl", seed) for seed in (7, 8)]
    wanted = [ops.distill_kl(a["z"], a["t"]) for a in fresh]
    streams = [torch.cuda.Stream() for _ in fresh]
    found: list[list[torch.Tensor]] = [[], []]
    torch.cuda.synchronize()
    for _ in range(100):
        for stream, a, losses in zip(streams, fresh, found, strict=True):
            with torch.cuda.stream(stream):
                losses.append(ops.distill_kl(a["z"], a["t"]))
    torch.cuda.synchronize()
    for losses, loss in zip(found, wanted, strict=True):
        assert (torch.stack(losses) == loss).all()


def test_distill_kls_graph_and_eager_calls_share_nothing():
    held, other = inputs("distill_kl", 9), inputs("distill_kl", 10)
    graph, (loss, *_) = captured(distilled, held)
    wanted = ops.distill_kl(held["z"], held["t"], 2.0, log_floor=1e-5)
    eager = ops.distill_kl(other["z"], other["t"])
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(50):
        with torch.cuda.stream(side):
            graph.replay()
        assert torch.equal(ops.distill_kl(other["z"], other["t"]), eager)
        torch.cuda.synchronize()
        assert torch.equal(loss, wanted)


def test_distill_kl_after_inference_mode():
    a = inputs("distill_kl", 11)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        with torch.inference_mode():
            inside = ops.distill_kl(a["z"], a["t"])
        outside = ops.distill_kl(a["z"].clone().requires_grad_(), a["t"])
        outside.backward()
        torch.cuda.current_stream().synchronize()
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
def test_an_empty_batch_sums_to_zero(reduction):
    empty = torch.empty(0, 10, device="cuda")
    loss = ops.distill_kl(empty, empty, reduction=reduction)
    assert (loss == 0).all() and loss.shape == ((0,) if reduction == "none" else ())


def test_a_compiled_distill_kl():
    a = inputs("distill_kl", 12)
    wanted = ops.distill_kl(a["z"], a["t"], 2.0)
    torch._dynamo.reset()
    compiled = torch.compile(lambda z, t: ops.distill_kl(z, t, 2.0), fullgraph=True)
    for _ in range(3):
        torch.testing.assert_close(compiled(a["z"], a["t"]), wanted)


def huge() -> tuple[torch.Tensor, torch.Tensor]:
    """More than 2^31 bf16 elements in samples of 3x32x32, all 0.5, and a pattern that shows where
    a 32-bit index would land."""
    free, _ = torch.cuda.mem_get_info()
    if free < 40 << 30:
        pytest.skip(f"{free >> 30} GiB of device memory are free, 40 are needed")
    shape = ((1 << 31) // 3072 + 5, 3, 32, 32)
    x = torch.full(shape, 0.5, dtype=torch.bfloat16, device="cuda")
    pattern = torch.ones_like(x)
    pattern[::2] = -1
    pattern[-3:] = -1
    assert x.numel() > 1 << 31
    return x, pattern


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_of_more_than_2_to_the_31_elements(norm):
    x, grad = huge()
    eps, alpha = NORMS[norm]
    x_adv = x.clone()
    ops.pgd_step_(x_adv, grad, x, eps, alpha, norm)
    for rows in (slice(0, 4), slice(len(x) // 2, len(x) // 2 + 4), slice(-6, None)):
        part = (x[rows].clone(), grad[rows], x[rows], eps, alpha, norm)
        assert torch.equal(x_adv[rows], ops.pgd_step_(*part))


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_of_more_than_2_to_the_31_elements(norm):
    x, noise = huge()
    radius = torch.rand(len(x), device="cuda")
    x_adv = torch.empty_like(x)
    ops.random_start_(x_adv, x, noise, NORMS[norm][0], "uniform", norm, radius=radius)
    for rows in (slice(0, 4), slice(len(x) // 2, len(x) // 2 + 4), slice(-6, None)):
        out = torch.empty_like(x[rows])
        part = (out, x[rows], noise[rows], NORMS[norm][0], "uniform", norm)
        assert torch.equal(x_adv[rows], ops.random_start_(*part, radius=radius[rows]))


@pytest.mark.parametrize("other", ["cpu", "cuda:1"])
def test_tensors_on_two_devices_are_one_sentence(other):
    if other == "cuda:1" and torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    x = torch.rand(2, 3, 4, 4, device="cuda:0")
    before = x.clone()
    z = torch.zeros(2, 10, device="cuda:0")
    with pytest.raises(ValueError, match="x must be on x_adv's device cuda:0"):
        ops.pgd_step_(x, x, x.to(other))
    with pytest.raises(ValueError, match="noise must be on x_adv's device cuda:0"):
        ops.random_start_(x, x, x.to(other))
    with pytest.raises(ValueError, match="target must be on logits's device cuda:0"):
        ops.logit_loss(z, z.to(other))
    with pytest.raises(ValueError, match="teacher_logits must be on student_logits's device"):
        ops.distill_kl(z, z.to(other))
    assert torch.equal(x, before)


@calls
def test_on_a_device_that_is_not_the_current_one(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    fresh = inputs(name, 13)
    wanted = CALLS[name](fresh)
    there = {key: value.to("cuda:1") for key, value in fresh.items()}
    got = CALLS[name](there)
    assert all(t.device == torch.device("cuda:1") for t in got)
    assert torch.cuda.current_device() == 0
    assert_same(tuple(t.to("cuda:0") for t in got), wanted)
