"""The CPU kernels against eager PyTorch and torch.compile; agreement first, then time.

Run: make bench. Each benchmark's extra_info holds the rivals' seconds, measured in turn with
fastard's, and the ratios of the minima with their targets.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard import ops, reference, reference_fab

from . import published
from .gpu_cases_apgd import EPS, official_step
from .gpu_square import SquareCase
from .timing import idle_share, interleaved

STEP_SHAPES = [(128, 3, 32, 32), (32, 3, 224, 224)]
BOUNDS = {"Linf": (8 / 255, 2 / 255), "L2": (0.5, 0.1), "L1": (12.0, 3.0)}


def shape_id(shape):
    return "x".join(map(str, shape))


def step_inputs(shape):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=g)
    x_adv = (x + 0.02 * torch.randn(shape, generator=g)).clamp(0, 1)
    return x_adv, torch.randn(shape, generator=g), x


def record(benchmark, run, rivals, targets, **extra):
    """Times all in turn, lets pytest-benchmark time fastard's, and notes ratios and targets."""
    idle = idle_share()
    timed = interleaved({"fastard": run, **rivals})
    own = timed["fastard"]["min"]
    ratios = {name: timed[name]["min"] / own for name in rivals}
    benchmark.extra_info.update(
        seconds=timed,
        times_faster_than={name: round(ratio, 3) for name, ratio in ratios.items()},
        targets=targets, idle_share_before=idle, **extra)  # fmt: skip
    for name, target in targets.items():
        verdict = "reached" if ratios.get(name, 0.0) >= target else "NOT reached"
        print(
            f"\n  {benchmark.name}: {ratios[name]:.2f}x {name}, target {target}x: {verdict}", end=""
        )
    benchmark.pedantic(run, rounds=50, iterations=5, warmup_rounds=3)
    return timed


@pytest.mark.parametrize("shape", STEP_SHAPES, ids=shape_id)
def test_pgd_step_linf(benchmark, shape):
    """Floor: 16 bytes an element (three reads, one write) at copy_'s byte rate."""
    torch._dynamo.reset()
    x_adv, grad, x = step_inputs(shape)
    eps, alpha = BOUNDS["Linf"]
    compiled = torch.compile(published.linf_step, fullgraph=True)
    wanted = published.linf_step(x_adv, grad, x, eps, alpha)
    assert torch.equal(ops.pgd_step_(x_adv.clone(), grad, x, eps, alpha), wanted)
    torch.testing.assert_close(compiled(x_adv, grad, x, eps, alpha), wanted)
    own, to = x_adv.clone(), torch.empty_like(x)
    timed = record(
        benchmark,
        lambda: ops.pgd_step_(own, grad, x, eps, alpha),
        {
            "eager": lambda: published.linf_step(x_adv, grad, x, eps, alpha),
            "compile": lambda: compiled(x_adv, grad, x, eps, alpha),
            "copy_": lambda: to.copy_(x),
        },
        {"eager": 8.0, "compile": 2.0},
    )
    n = x.numel()
    rate = {name: n * b / timed[name]["min"] / 1e9 for name, b in (("fastard", 16), ("copy_", 8))}
    share = rate["fastard"] / rate["copy_"]
    benchmark.extra_info.update(gigabytes_per_second=rate, share_of_copy_rate=share)
    print(
        f"\n  {benchmark.name}: {share:.0%} of copy_'s byte rate, target 90 % at 32x3x224x224",
        end="",
    )


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize("shape", STEP_SHAPES, ids=shape_id)
def test_pgd_step_l2_l1(benchmark, shape, norm):
    """Floor: as Linf; L2 reads a sample twice (the second time from cache), L1 some forty times."""
    torch._dynamo.reset()
    x_adv, grad, x = step_inputs(shape)
    eps, alpha = BOUNDS[norm]
    if norm == "L2":
        eager = published.l2_step
    else:
        pytest.importorskip("pyautoattack", reason="the L1 rival is pyautoattack's projection")
        eager = published.l1_step
    sorted_step = torch.compile(
        lambda a, g, b: reference.pgd_step(a, g, b, eps, alpha, norm), fullgraph=True
    )
    ours = ops.pgd_step_(x_adv.clone(), grad, x, eps, alpha, norm)
    torch.testing.assert_close(ours, eager(x_adv, grad, x, eps, alpha), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours, sorted_step(x_adv, grad, x), rtol=0, atol=1e-5)
    own = x_adv.clone()

    def step():
        if norm == "L1":
            # From the same point each time: a projected iterate would need no threshold search.
            own.copy_(x_adv)
        ops.pgd_step_(own, grad, x, eps, alpha, norm)

    record(
        benchmark, step,
        {
            "eager": lambda: eager(x_adv, grad, x, eps, alpha),
            "compile": lambda: sorted_step(x_adv, grad, x),
        },
        {"eager": 3.0},
    )  # fmt: skip


@pytest.mark.parametrize("rows, classes", [(128, 10), (256, 100), (256, 1000)])
def test_logit_loss_kl(benchmark, rows, classes):
    """Floor: two exponentials a class, some 2 ns without vectors, 0.3 ns with AVX-512."""
    torch._dynamo.reset()
    z, t = torch.randn(2, rows, classes) * 4

    def eager():
        leaf = z.detach().requires_grad_()
        loss = F.kl_div(leaf.log_softmax(1), t.softmax(1), reduction="sum")
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    def plain(z, t):
        log_q, p = z.log_softmax(1), t.softmax(1)
        return (p * (p.log() - log_q)).sum(1), log_q.exp() - p

    compiled = torch.compile(plain, fullgraph=True)
    loss, dlogits = ops.logit_loss(z, t)
    for rival_loss, rival_d in (eager(), compiled(z, t)):
        torch.testing.assert_close(loss.sum(), rival_loss.sum(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(dlogits, rival_d, rtol=1e-4, atol=1e-6)
    record(
        benchmark, lambda: ops.logit_loss(z, t),
        {"eager": eager, "compile": lambda: compiled(z, t)}, {"eager": 5.0},
    )  # fmt: skip


def test_square_step_l2(benchmark):
    """Floor: 12 bytes an element (two reads, one write); a row stays in cache meanwhile."""
    case = SquareCase((128, 3, 32, 32))
    s = case.inputs("cpu", torch.Generator().manual_seed(0))
    eager = case.chain()
    torch.testing.assert_close(case.fastard(s)[0], eager(*case.arguments(s)), rtol=0, atol=1e-5)
    record(
        benchmark, lambda: case.fastard(s), {"eager": lambda: eager(*case.arguments(s))},
        {"eager": 5.0},
    )  # fmt: skip


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_fab_step(benchmark, norm):
    """Floor: 16 bytes an element; the searches go over a sample some 10 times (L1: 40) in cache."""
    official = pytest.importorskip(
        "pyautoattack.fab_projections", reason="the rival is pyautoattack's projection"
    )
    project = getattr(official, f"projection_{norm.lower()}")
    at, grad, x = step_inputs(STEP_SHAPES[0])
    rows = len(x)
    gap = -0.01 * grad.abs().flatten(1).sum(1)
    points = torch.cat((at, x)).flatten(1)
    w = torch.cat((grad, grad)).flatten(1)
    level = ((grad * at).flatten(1).sum(1) - gap).repeat(2)
    no = torch.zeros(rows, dtype=torch.bool)
    own = at.clone()
    state = (own, x.clone(), torch.full((rows,), 1e10), torch.zeros(rows, dtype=torch.int32), no)

    def step():
        own.copy_(at)
        ops.fab_step_(*state, x, grad, gap, no, norm, n_iter=1 << 30)

    given = (own.clone(), *(t.clone() for t in state[1:]), x, grad, gap, no)
    exact = reference_fab.iteration(*given, norm, 1 << 30, -1.0, 0.1, 1.05, 0.9, 0.0, 1.0)[0]
    step()
    torch.testing.assert_close(own, exact, rtol=0, atol=1e-4)
    rivals = {"official projections": lambda: project(points, w, level)}
    record(benchmark, step, rivals, {"official projections": 10.0})


@pytest.mark.parametrize("shape", STEP_SHAPES, ids=shape_id)
def test_apgd_step_linf(benchmark, shape):
    """Floor: 24 bytes an element (four reads, two writes) at copy_'s byte rate."""
    torch._dynamo.reset()
    x_adv, grad, x = step_inputs(shape)
    x_old, size = x.clone(), torch.full((len(x),), 2 * EPS)
    eps, column = torch.full((1,), EPS), size.view(-1, 1, 1, 1)
    compiled = torch.compile(official_step, fullgraph=True)
    wanted, _ = official_step(x_adv, x_old, grad, x, column)
    own, own_old = x_adv.clone(), x_old.clone()
    assert torch.equal(ops.apgd_step_(own, own_old, grad, x, eps, size), wanted)
    torch.testing.assert_close(compiled(x_adv, x_old, grad, x, column), wanted)
    record(
        benchmark, lambda: ops.apgd_step_(own, own_old, grad, x, eps, size),
        {
            "eager": lambda: official_step(x_adv, x_old, grad, x, column),
            "compile": lambda: compiled(x_adv, x_old, grad, x, column),
        },
        {"eager": 8.0},
    )  # fmt: skip
