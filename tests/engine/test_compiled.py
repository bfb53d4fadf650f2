"""Compiled programs of real classifiers: logits and input gradients near fp64 autograd's."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch import nn

import fastard
from fastard.engine import Program, compiled
from fastard.engine.precision import cpu_bf16
from fastard.models import Normalized
from tests.engine.networks import (
    OURS,
    TIMM,
    TORCHVISION,
    images,
    network,
    ours,
    theirs,
    timms,
    tiny,
)
from tests.engine.oracle import answers, autograd, eager, error, exact, median, reason, typical

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


# What one activation on the wrong side of its kink may do to a sample's gradient.
KINK = 0.05


def as_exact_as_eager(model, x, d):
    """Errors at most twice those of eager autograd in the layout with the larger ones."""
    truth, beside = exact(model, x, d), eager(model, x, d)
    program = Program(model)
    got = answers(program, x, d)
    assert program.made.plan is not None, reason(program)
    for k in range(2):
        for measure, more in ((typical, 0.0), (median, KINK)):
            allowed = 2 * max(measure(e[k], truth[k]) for e in beside) + 1e-7 + more
            assert measure(got[k], truth[k]) <= allowed, error(got[k], truth[k]).tolist()


@pytest.mark.parametrize("name", OURS)
def test_our_networks(name):
    as_exact_as_eager(*ours(name))


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    as_exact_as_eager(*theirs(name))


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    as_exact_as_eager(*timms(name))


@pytest.mark.skipif(not cpu_bf16()[0], reason=cpu_bf16()[1])
@pytest.mark.parametrize("name", [*OURS, "efficientnet_b0", "mobilenet_v3_small", "convnext_tiny"])
def test_bf16(name):
    """Beside autocast with the same fp32 head."""
    model, x, d = ours(name) if name in OURS else theirs(name)
    program, autocast = (Program(model, "bf16", engine=on) for on in (True, False))
    got, beside = answers(program, x, d), answers(autocast, x, d)
    assert program.made.plan is not None and program.made.plan.dtype == torch.bfloat16
    for mine, theirs_, wanted in zip(got, beside, exact(model, x, d), strict=True):
        assert mine.dtype == torch.float32
        assert median(mine, wanted) <= 2 * median(theirs_, wanted) + 1e-7
    assert not torch.equal(got[0], got[0].bfloat16().float()), "logits were rounded to bf16"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Program(model).forward(x), got[0])


OPTIONS = [{"fold": False}, {"layout": "contiguous"}, {"layout": "channels_last"}, {"frozen": True},
           {"fold": False, "layout": "contiguous"}]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["tiny", "mobilenetv2", "preactresnet18"])
def test_options(name, options):
    model, x, d = tiny() if name == "tiny" else ours(name)
    truth, beside, program = exact(model, x, d), eager(model, x, d), Program(model, **options)
    got = answers(program, x, d)
    for k in range(2):
        assert typical(got[k], truth[k]) <= 2 * max(typical(e[k], truth[k]) for e in beside) + 1e-7
    assert program.made.plan is not None, reason(program)


@pytest.fixture(scope="module")
def small():
    return tiny()


def test_frozen_weights_are_copied_once(small):
    model, x, _ = small
    model = copy.deepcopy(model)
    frozen, live = Program(model, frozen=True), Program(model)
    before = frozen.forward(x)
    with torch.no_grad():
        model.fc.weight.mul_(2)
    assert torch.equal(frozen.forward(x), before)
    assert not torch.allclose(live.forward(x), before)


@pytest.mark.parametrize("name", ["tiny", "resnet18", "wrn-16-4"])
def test_several_gradients_of_one_forward(name):
    model, x, d = tiny() if name == "tiny" else ours(name)
    program = Program(model)
    other, images_before, d_before = d.flip(0) * 3, x.clone(), d.clone()
    wanted = {}
    for key, seed in (("d", d), ("other", other)):
        program.forward(x)
        wanted[key] = program.vjp(seed)
    assert program.made.plan is not None, reason(program)
    program.forward(x)
    for key, seed in (("d", d), ("other", other), ("d", d)):
        assert torch.equal(program.vjp(seed, retain=True), wanted[key])
    assert torch.equal(program.vjp(other), wanted["other"])
    with pytest.raises(RuntimeError, match="vjp needs a forward before it"):
        program.vjp(other)
    assert typical(wanted["d"], autograd(model, x, d)[1]) < 1e-5
    assert torch.equal(x, images_before) and torch.equal(d, d_before)


def test_any_batch_size_by_one_plan(small):
    model, x, d = small
    compiled.discard(model)
    program, autograds, plans = Program(model), Program(model, engine=False), set()
    for first, count in ((0, 1), (0, 8), (3, 1), (1, 3), (0, 0), (0, 2)):
        part = slice(first, first + count)
        got, wanted = (answers(p, x[part], d[part]) for p in (program, autograds))
        for a, b in zip(got, wanted, strict=True):
            assert a.shape == b.shape and (count == 0 or error(a, b).max() < 1e-5)
        plans |= {program.made.plan} if count else set()
        fastard.pgd_kl(model, x[part], d[part], steps=1)
    assert len(plans) == 1 and None not in plans
    assert len(compiled._PLANS[model]) == 1


def test_images_in_any_layout(small):
    model, x, d = small
    wanted = answers(Program(model), x, d)
    for moved in (x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT,
                  x.repeat_interleave(2, 0)[::2], x[:1].expand(8, -1, -1, -1)):  # fmt: skip
        got = answers(Program(model), moved, d)
        for a, b in zip(got, wanted, strict=True):
            assert error(a, b)[0] < 1e-5


@pytest.fixture(scope="module")
def normalised():
    make = lambda: Normalized(fastard.models.build("resnet18"), MEAN, STD)  # noqa: E731
    return network(make, 32), *images(32)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_normalised_models(normalised, norm):
    model, x, d = normalised
    program = Program(model)
    for got, wanted in zip(answers(program, x, d), autograd(model, x, d), strict=True):
        assert typical(got, wanted) < 1e-5
    assert program.made.plan is not None, reason(program)
    assert "normalised by the step's second output" in program.explain()
    options = {"norm": norm, "random_start": False, "steps": 1, "eps": 0.5, "alpha": 0.2}
    got = fastard.pgd_kl(model, x, d, **options)
    wanted = fastard.pgd_kl(model, x, d, engine=False, **options)
    if norm == "Linf":
        assert (got != wanted).float().flatten(1).mean(1).quantile(0.25) <= 1e-4
    else:
        assert typical(got - x, wanted - x) < 1e-5
    assert not torch.equal(got, x)


def test_a_normaliser_around_a_normaliser(normalised):
    """mean and std given with the program and those of the model become one."""
    model, x, d = normalised
    given = {"mean": (0.1, 0.0, 0.2), "std": (0.9, 1.0, 0.8)}
    program = Program(model, **given)
    logits, dx = answers(program, x, d)
    m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in given.values())
    truth = autograd(lambda v: model((v - m) / s), x, d)
    assert typical(logits, truth[0]) < 1e-5 and typical(dx, truth[1]) < 1e-5
    assert program.made.plan is not None


def test_wrappers(small, tmp_path):
    import torch.distributed as dist

    model, x, d = small
    wanted = answers(Program(model), x, d)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = [
            nn.DataParallel(model), torch.compile(model), nn.DataParallel(torch.compile(model)),
            nn.parallel.DistributedDataParallel(model), model.forward,
        ]  # fmt: skip
        for wrapper in wrapped:
            program = Program(wrapper)
            assert all(map(torch.equal, answers(program, x, d), wanted))
            assert program.made.plan is not None and program.model is model
    finally:
        dist.destroy_process_group()


def test_a_plan_leaves_nothing_in_the_model(small):
    model, x, d = copy.deepcopy(small[0]).train(), *small[1:]
    before = [{**m.__dict__} for m in model.modules()]
    versions = [t._version for t in (*model.parameters(), *model.buffers())]
    generator = torch.get_rng_state()
    answers(Program(model), x, d)
    assert [m.__dict__ for m in model.modules()] == before
    assert versions == [t._version for t in (*model.parameters(), *model.buffers())]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(generator, torch.get_rng_state())
