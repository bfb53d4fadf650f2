"""MTARD and B-MTARD against the published loops with their Python floats."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard import losses, methods
from fastard.methods.registry import METHODS

from .loops import ALPHA, EPS, STEPS, Passes, ascend, network
from .steps import assert_five_steps_agree, assert_fp32_agrees, gaussian, in_fp32

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}


def published(setting, natural, *, rate=0.025, temperature_rate=None, trace=None):
    student, robust = setting.twin, setting.teacher
    state = {"nat": 0.5, "adv": 0.5, "first": None, "t": [1.0, 1.0]}

    def attack(x, y):
        return ascend(x, gaussian(x), lambda u: F.cross_entropy(student(u), y))

    def k(q, logits):
        p = logits.softmax(1)
        return (-q.log_softmax(1) * p + torch.log(p + 1e-5) * p).mean()

    def loss_of(x, x_adv, y):
        adv, clean = student(x_adv), student(x)
        with torch.no_grad():
            targets = [robust(x_adv) / state["t"][0], natural(x) / state["t"][1]]
        k_adv, k_nat = k(adv, targets[0]), k(clean, targets[1])
        if temperature_rate is not None:
            e = [float((p * (p + 1e-5).log()).mean()) for p in (t.softmax(1) for t in targets)]
            for i, (own, other) in enumerate([(e[0], e[1]), (e[1], e[0])]):
                sign = (own / other > 1) - (own / other < 1)
                state["t"][i] = max(min(10, state["t"][i] - temperature_rate * sign), 1)
        if state["first"] is None:
            state["first"] = (k_adv.item(), k_nat.item())
        l_adv, l_nat = k_adv.item() / state["first"][0], k_nat.item() / state["first"][1]
        state["nat"] -= rate * (state["nat"] - l_nat / (l_adv + l_nat))
        state["adv"] = 1 - state["nat"]
        if trace is not None:
            trace.append((state["nat"], *state["t"]))
        return state["adv"] * k_adv + state["nat"] * k_nat

    return attack, loss_of


def natural_teacher():
    return network(7).eval()


def test_five_steps_equal_the_published_loop(setting):
    natural = natural_teacher()
    method = methods.build("mtard", setting.student, [setting.teacher, natural], **ATTACK)
    trace = []
    assert_five_steps_agree(method, setting, *published(setting, natural, trace=trace))
    assert float(method.natural_weight) == pytest.approx(trace[-1][0], rel=1e-9)
    assert trace[-1][0] != 0.5


def test_five_balanced_steps_equal_the_published_loop(setting):
    natural = natural_teacher()
    # A large rate, so that temperatures leave 1 far behind within five steps.
    method = methods.build(
        "b-mtard", setting.student, [setting.teacher, natural], temperature_rate=0.3, **ATTACK
    )
    trace = []
    assert_five_steps_agree(
        method, setting, *published(setting, natural, temperature_rate=0.3, trace=trace)
    )
    assert method.temperatures.tolist() == pytest.approx(trace[-1][1:], rel=1e-9)
    assert max(trace[-1][1:]) > 1.5


@pytest.mark.parametrize("name", ["mtard", "b-mtard"])
def test_five_fp32_steps(setting, name):
    single, natural = in_fp32(setting), natural_teacher().float()
    method = methods.build(name, single.student, [single.teacher, natural], **ATTACK)
    rate = 0.001 if name == "b-mtard" else None
    assert_fp32_agrees(method, single, *published(single, natural, temperature_rate=rate))


def test_who_sees_what(setting):
    x, y = setting.batch
    natural = natural_teacher()
    method = methods.build("mtard", setting.student, [setting.teacher, natural], **ATTACK)
    assert method.teacher_roles == ("robust", "natural")
    x_adv = method.attack(x, y)
    passes = Passes(setting.student, x=x, x_adv=x_adv)
    seen = []
    for teacher in method.teachers:
        teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method.outer(x, x_adv, y)
    assert passes.seen == ["x_adv", "x"]
    assert torch.equal(seen[0], x_adv)
    assert torch.equal(seen[1], x)
    assert len(seen) == 2


def test_rates_fall_where_the_learning_rate_does(setting):
    natural = natural_teacher()
    method = methods.build("mtard", setting.student, [setting.teacher, natural], **ATTACK)
    factors = []
    for epoch in (1, 215, 216, 260, 261, 285, 286):
        method.on_epoch(epoch, 300)
        factors.append(float(method.rate_factor))
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001])
    method.on_epoch(8, 10)
    assert float(method.rate_factor) == pytest.approx(0.1)
    method.natural_weight.fill_(0.5)
    method(*setting.batch)
    first = float(method.natural_weight)
    assert first == pytest.approx(0.5)
    method(*setting.batches[1])
    moved = abs(float(method.natural_weight) - first)
    assert 0 < moved < 0.0025


def test_weights_and_temperatures_are_in_the_state(setting):
    natural = natural_teacher()
    method = methods.build("b-mtard", setting.student, [setting.teacher, natural], **ATTACK)
    for x, y in setting.batches:
        method(x, y)
    state = method.state_dict()
    assert set(state) == {"natural_weight", "first", "rate_factor", "temperatures"}
    other = methods.build("b-mtard", setting.student, [setting.teacher, natural], **ATTACK)
    other.load_state_dict(state)
    assert float(other.natural_weight) == float(method.natural_weight) != 0.5
    assert torch.equal(other.first, method.first)


def test_terms_and_gradients():
    torch.manual_seed(0)
    logits = [torch.randn(4, 5, dtype=torch.float64) for _ in range(4)]
    for student in logits[:2]:
        student.requires_grad_()
    ours = losses.mtard(*logits, scale=10.0)
    for term, student, teacher in zip(ours, logits[:2], logits[2:], strict=True):
        p = teacher.softmax(1)
        expected = 10 * (p * ((p + 1e-5).log() - student.log_softmax(1))).mean()
        torch.testing.assert_close(term, expected, rtol=1e-12, atol=1e-12)
        (a,), (b,) = torch.autograd.grad(term, student), torch.autograd.grad(expected, student)
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_only_the_balanced_one_is_selected_by_the_mean_of_clean_and_robust():
    for name, by in [("mtard", "robust"), ("b-mtard", "weighted")]:
        assert METHODS[methods.preset(name).method].selects_on == by
    assert methods.preset("b-mtard-official").method == "b-mtard"


def test_wrong_number_of_teachers_and_bad_drops(setting):
    with pytest.raises(ValueError, match=r"takes 2 teachers \(robust, then natural\), but"):
        methods.build("mtard", setting.student, [setting.teacher])
    with pytest.raises(ValueError, match="option drops must be numbers from 0 to 1, but is"):
        methods.build("mtard", setting.student, [setting.teacher] * 2, drops=(215, 260))
