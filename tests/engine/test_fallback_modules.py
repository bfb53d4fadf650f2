"""Hooks, parametrisations, scripts and odd outputs: right, with the reason, or one sentence."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import fastard
from fastard.engine import Program
from tests.engine.networks import tiny
from tests.engine.oracle import agrees, answers, reason


@pytest.fixture
def case():
    return tiny()


def forward_hook(model):
    model.stem[0].register_forward_hook(lambda module, given, made: made * 1.5)


def pre_hook(model):
    model.point.register_forward_pre_hook(lambda module, given: (given[0] + 0.1,))


def hook_on_a_block(model):
    model.stem.register_forward_hook(lambda module, given, made: made.flip(1))


def hook_on_the_model(model):
    model.register_forward_hook(lambda module, given, made: made * 2)


def backward_hook(model):
    model.expand[0].register_full_backward_hook(lambda module, into, out: (into[0] * 0.5,))


def backward_pre_hook(model):
    model.after.register_full_backward_pre_hook(lambda module, out: (out[0] * 2,))


def quiet_hook(model):
    model.seen = []
    model.act.register_forward_hook(lambda module, given, made: model.seen.append(made.shape))


HOOKS = {
    "forward": (forward_hook, "stem.0: it has hooks"),
    "pre": (pre_hook, "point: it has hooks"),
    "of a block": (hook_on_a_block, "stem: it has hooks"),
    "of the model": (hook_on_the_model, "hooks on the whole model"),
    "backward": (backward_hook, "expand.0: it has hooks"),
    "backward pre": (backward_pre_hook, "after: it has hooks"),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_take_part(name, case):
    model, x, d = case
    plain = answers(Program(model), x, d)
    change, why = HOOKS[name]
    change(model)
    program = agrees(model, x, d)
    assert why in program.explain()
    assert not all(map(torch.equal, answers(program, x, d), plain))


def test_hooks_fire_once_a_pass_and_not_for_making_a_plan(case):
    model, x, d = case
    quiet_hook(model)
    program = Program(model)
    for passes in (1, 2, 3):
        answers(program, x, d)
        assert len(model.seen) == passes
    assert program.made.plan is not None, reason(program)


PARAMETRISATIONS = {
    "weight_norm": lambda m: parametrizations.weight_norm(m.expand[0]),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m.point),
    "orthogonal": lambda m: parametrizations.orthogonal(m.fc),
    "old weight_norm": lambda m: nn.utils.weight_norm(m.expand[0]),
    "old spectral_norm": lambda m: nn.utils.spectral_norm(m.point),
    "pruned": lambda m: prune.l1_unstructured(m.depth, "weight", amount=0.3),
}


@pytest.mark.parametrize("name", PARAMETRISATIONS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parametrisations(name, case):
    model, x, d = case
    PARAMETRISATIONS[name](model)
    model.eval()
    program = agrees(model, x, d)
    before = program.forward(x)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    agrees(model, x, d)
    eager = Program(model, engine=False)
    torch.testing.assert_close(program.forward(x), eager.forward(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(program.forward(x), before, atol=1e-4)


class Odd(nn.Module):
    """Tiny with another ending."""

    def __init__(self, end):
        super().__init__()
        self.net, self.end = tiny()[0], end

    def forward(self, x):
        return self.end(self.net(x), x)


ENDINGS = {
    "tuple": (lambda z, x: (z, z), "must return a tensor of logits"),
    "dict": (lambda z, x: {"logits": z}, "must return a tensor of logits"),
    "list": (lambda z, x: [z], "must return a tensor of logits"),
    "none": (lambda z, x: None, "must return a tensor of logits"),
    "flat": (lambda z, x: z.flatten(), "must return logits \\[8, classes\\], but returned shape"),
    "deep": (lambda z, x: z[:, :, None], "must return logits \\[8, classes\\], but returned shape"),
    "mean over the batch": (lambda z, x: z.mean(0, keepdim=True), "must return logits \\[8, "),
    "squeezed": (lambda z, x: z[:1].squeeze(), "must return logits \\[8, classes\\]"),
    "no way back": (lambda z, x: z.detach(), "do not depend on x through autograd"),
    "NaN": (lambda z, x: z * float("nan"), "NaN"),
    "infinite": (lambda z, x: z.exp() / 0.0, "inf"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_odd_outputs_are_refused_in_one_sentence(name, case):
    end, match = ENDINGS[name]
    model, (x, d) = Odd(end).eval(), case[1:]
    said = []
    for engine in (True, False):
        with pytest.raises((TypeError, ValueError), match=match) as caught:
            fastard.pgd_kl(model, x, d, engine=engine)
        said.append((type(caught.value), str(caught.value)))
        assert len(said[-1][1].splitlines()) == 1
    assert said[0] == said[1]


def test_logits_that_squeeze_away_a_batch_of_one(case):
    """Right where the batch is larger, though the plan was first asked for one image."""
    model, (x, d) = Odd(lambda z, x: z.squeeze()).eval(), case[1:]
    with pytest.raises(ValueError, match="must return logits \\[1, classes\\]"):
        fastard.pgd_kl(model, x[:1], d[:1])
    agrees(model, x, d)


def test_not_a_number_for_a_while(case):
    """Diverged weights, then restored: the next attack is on the live model."""
    model, x, d = case
    kept = model.fc.weight.detach().clone()
    for bad in (float("nan"), float("inf")):
        model.fc.weight.data.fill_(bad)
        with pytest.raises(ValueError, match="NaN|inf"):
            fastard.pgd_kl(model, x, d)
        model.fc.weight.data.copy_(kept)
        assert agrees(model, x, d).made.plan is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_models_and_parts(case):
    model, x, d = case
    scripted = torch.jit.trace(model, x)
    program = agrees(scripted, x, d)
    assert "scripted" in program.explain()
    model.stem = torch.jit.script(model.stem)
    program = agrees(model, x, d)
    assert program.made.plan is not None, reason(program)


def test_functions(case):
    model, x, d = case
    agrees(lambda v: model(v) * 2, x, d)
    assert agrees(model.forward, x, d).made.plan is not None
    assert "a function is not traced" in agrees(lambda v: model(v), x, d).explain()


def test_submodules_that_refuse_eval_mode(case):
    """A dropout that stays in train mode draws in both."""

    class Stubborn(nn.Dropout):
        def train(self, mode=True):
            return super().train(True)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.drop = case[0], nn.Dropout(0.2)

        def train(self, mode=True):
            super().train(mode)
            self.drop.train()
            return self

        def forward(self, x):
            return self.net(self.drop(x))

    _, x, _ = case
    model = Around().eval()
    for part in (nn.Dropout(0.2), Stubborn(0.2)):
        model.drop = part.train()
        torch.manual_seed(0)
        got = Program(model).forward(x)
        torch.manual_seed(0)
        wanted = Program(model, engine=False).forward(x)
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_run_eagerly(dtype, case):
    model, x, d = case
    program = agrees(model.to(dtype), x.to(dtype), d)
    assert str(dtype)[6:] in reason(program)


def test_attacks_end_alike(case):
    """Ten steps: images and loss reached, compiled and eager."""
    model, x, d = case
    for norm, share in (("Linf", 0.01), ("L2", None)):
        got, wanted = (
            fastard.pgd_kl(model, x, d, norm=norm, random_start=False, engine=engine)
            for engine in (True, False)
        )
        if share is not None:
            assert (got != wanted).float().mean() <= share
        else:
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-3)


def test_images_that_are_all_alike():
    """A first batch without contrast says nothing against the model."""
    model, x, d = tiny()
    flat = torch.full_like(x, 0.5)
    agrees(model, flat, d)
    assert agrees(model, x, d).made.plan is not None
