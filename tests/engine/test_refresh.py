"""Whatever changes the model, the next attack's gradient is the live model's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastard
from fastard.engine import Program
from tests.engine.networks import images, tiny
from tests.engine.oracle import answers, lived_in, reason

L2 = {"norm": "L2", "eps": 10.0, "alpha": 1.0, "steps": 1, "random_start": False}


@pytest.fixture
def case():
    return tiny()


def distance(a, b):
    return float((a - b).abs().max() / b.abs().max())


def assert_live(model, x, d, program, attack=True):
    """The program used before, a fresh one and a fresh attack all answer for the model as it is."""
    wanted = answers(Program(model, engine=False), x, d)
    for fresh in (program, Program(model)):
        for got, exact in zip(answers(fresh, x, d), wanted, strict=True):
            assert distance(got, exact) < 1e-5, reason(fresh)
    if attack:
        moves = [fastard.pgd_kl(model, x, d, engine=e, **L2) - x for e in (True, False)]
        assert distance(*moves) < 1e-4


def check(model, x, d, change, compiled=True):
    """Attacks, changes the model, and attacks again."""
    program = Program(model)
    assert_live(model, x, d, program)
    assert program.made.plan is not None, reason(program)
    before = program.forward(x)
    change(model)
    assert_live(model, x, d, program)
    assert distance(program.forward(x), before) > 1e-4
    assert (program.made.plan is not None) == compiled, reason(program)


def step(make):
    """A training step: gradients by a train-mode pass, then the optimiser's."""

    def change(model):
        x, _ = images(12, count=8)
        optimiser = make(model.parameters())
        model.train()
        F.cross_entropy(model(x), torch.arange(8)).backward()
        optimiser.step()
        optimiser.zero_grad()
        model.eval()

    return change


def through_data(model):
    for p in model.parameters():
        p.data.mul_(1.3)


def replaced_data(model):
    for p in model.parameters():
        p.data = p.data * 1.3


def vector(model):
    flat = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(flat.detach() * 1.3, model.parameters())


def train_forward(model):
    with torch.no_grad():
        model.train()(images(12, count=8)[0] * 3 - 1)
    model.eval()


def state(assign):
    def change(model):
        other = lived_in(copy.deepcopy(model), images(12)[0] * 2, seed=5)
        values = {k: v.clone() * 1.2 if v.is_floating_point() else v.clone()
                  for k, v in other.state_dict().items()}  # fmt: skip
        model.load_state_dict(values, assign=assign)

    return change


def under_inference_mode(model):
    with torch.inference_mode():
        model.load_state_dict({k: v * 1.2 for k, v in model.state_dict().items()}, assign=True)


def swapped_in_place(model):
    with torch.no_grad():
        for t in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            t.copy_(t.clone() * 1.1)


def swapped_parameters(model):
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(p.detach() * 1.2))


def set_attribute(path, name, value):
    def change(model):
        setattr(model.get_submodule(path), name, value)

    return change


def hook(model):
    model.stem[0].register_forward_hook(lambda module, given, made: made * 0.5)


def pre_hook(model):
    model.after.register_forward_pre_hook(lambda module, given: (given[0] * 0.5,))


def halved(model):
    model.half()
    model.float()


def doubled(model):
    model.double()
    with torch.no_grad():
        model.fc.weight.mul_(1.1)
    model.float()


CHANGES = {
    "fused SGD": step(lambda p: torch.optim.SGD(p, 0.1, fused=True)),
    "fused Adam": step(lambda p: torch.optim.Adam(p, 0.01, fused=True)),
    "foreach AdamW": step(lambda p: torch.optim.AdamW(p, 0.01, foreach=True)),
    "data written": through_data,
    "data replaced": replaced_data,
    "vector_to_parameters": vector,
    "train-mode forward alone": train_forward,
    "load_state_dict": state(False),
    "load_state_dict assign": state(True),
    "parameters of inference_mode": under_inference_mode,
    "EMA in place": swapped_in_place,
    "other Parameters": swapped_parameters,
    "another layer": set_attribute("", "fc", nn.Linear(32, 10)),
    "another activation": set_attribute("", "act", nn.Hardswish()),
    "a norm gone": set_attribute("", "after", nn.Identity()),
    "a hook": hook,
    "a pre-hook": pre_hook,
    "eps": set_attribute("after", "eps", 0.5),
    "stride": set_attribute("depth", "stride", (1, 1)),
    "a forward of its own": set_attribute("act", "forward", lambda v: v * 2),
    "halved and back": halved,
    "doubled and back": doubled,
    "strided bias": set_attribute("squeeze", "bias", nn.Parameter(torch.randn(8)[::2])),
    "channels_last": lambda model: swapped_in_place(model.to(memory_format=torch.channels_last)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_next_attack_is_on_the_live_model(name, case):
    check(*case, CHANGES[name], compiled=name != "parameters of inference_mode")


def test_other_shapes_of_the_same_modules(case):
    model, x, d = case
    program = Program(model)
    assert_live(model, x, d, program)
    model.fc.weight, model.fc.bias = (nn.Parameter(torch.randn(s)) for s in ((7, 32), (7,)))
    assert_live(model, x, d[:, :7], program)
    assert program.made.plan is not None


def test_adversarial_weight_perturbation_and_its_undoing(case):
    model, x, d = case
    program = Program(model)
    first = answers(program, x, d)
    kept = [p.detach().clone() for p in model.parameters()]
    noise = [0.1 * p.norm() * torch.randn_like(p) / p.numel() ** 0.5 for p in kept]
    with torch.no_grad():
        for p, n in zip(model.parameters(), noise, strict=True):
            p.add_(n)
    assert_live(model, x, d, program)
    assert distance(program.forward(x), first[0]) > 1e-3
    with torch.no_grad():
        for p, value in zip(model.parameters(), kept, strict=True):
            p.copy_(value)
    assert all(map(torch.equal, answers(program, x, d), first))


def test_hooks_on_all_modules(case):
    model, x, d = case
    program = Program(model)
    assert_live(model, x, d, program)

    def twice(module, given, made):
        return made * 2 if isinstance(module, nn.Conv2d) else None

    handle = nn.modules.module.register_module_forward_hook(twice)
    try:
        assert_live(model, x, d, program)
    finally:
        handle.remove()
    assert_live(model, x, d, program)
    assert Program(model).compilation(x, fastard.engine.precision.resolve("fp32", "cpu")).plan


def test_weights_changed_between_a_forward_and_its_gradient(case):
    """The gradient is the forward's own, or refused; never one of two models mixed."""
    model, x, d = case
    first, second = Program(model), Program(model)
    wanted = answers(first, x, d)[1]
    first.forward(x)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(-1.5)
    second.forward(x)
    fastard.pgd_kl(model, x, d, steps=1)
    try:
        got = first.vjp(d)
    except RuntimeError as refusal:
        assert len(str(refusal).splitlines()) == 1
    else:
        assert distance(got, wanted) < 1e-5
