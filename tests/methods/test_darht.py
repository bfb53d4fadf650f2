"""DARHT: a map of two unlike teachers, its loss, its options, its attack."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F

from fastard import losses, methods
from fastard.models import LogitMap

from .loops import ALPHA, EPS, STEPS, Passes, ascend, network, sgd, train_with
from .steps import assert_five_steps_agree, assert_fp32_agrees, in_fp32

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}


def transformer(seed=5):
    torch.manual_seed(seed)
    return (
        timm.models.VisionTransformer(
            img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=1, num_heads=2, num_classes=5
        )
        .double()
        .eval()
    )


@pytest.fixture
def heterogeneous(setting):
    """A convolutional and a transformer teacher, and a student with a row for each."""
    setting.student = methods.registry.METHODS["darht"].make_student(
        lambda outputs: network(0, outputs), 5, 2, {}
    )
    setting.twin = copy.deepcopy(setting.student)
    setting.teachers = [setting.teacher, transformer()]
    return setting


def by_hand(setting, *, t=1.0, weights=(0.5, 0.5), clean_input=False, clean=0.0, label=0.0):
    student = setting.twin

    def log_prediction(rows):
        return rows.softmax(2).mean(1).log()

    def attack(x, y):
        start = (x + torch.rand(x.shape).to(x.dtype) * 2 * EPS - EPS).clamp(0, 1)
        return ascend(x, start, lambda u: F.nll_loss(log_prediction(student.map(u)), y))

    def distil(rows, u):
        total = 0.0
        for i, teacher in enumerate(setting.teachers):
            with torch.no_grad():
                target = (teacher(u) / t).softmax(1)
            kl = F.kl_div((rows[:, i] / t).log_softmax(1), target, reduction="batchmean")
            total = total + weights[i] * t * t * kl
        return total

    def loss_of(x, x_adv, y):
        rows = student.map(x_adv)
        loss = distil(rows, x if clean_input else x_adv)
        if clean:
            loss = loss + clean * distil(student.map(x), x)
        if label:
            loss = (1 - label) * loss + label * F.nll_loss(log_prediction(rows), y)
        return loss

    return attack, loss_of


CASES = [
    ({}, {}),
    ({"temperature": 4.0, "teacher_weights": (0.8, 0.3)}, {"t": 4.0, "weights": (0.8, 0.3)}),
    ({"teacher_input": "clean", "clean_weight": 0.2}, {"clean_input": True, "clean": 0.2}),
    ({"label_weight": 0.3, "clean_weight": 0.2}, {"label": 0.3, "clean": 0.2}),
]


@pytest.mark.parametrize(("options", "hand"), CASES)
def test_five_steps_equal_the_loop(heterogeneous, options, hand):
    method = methods.build(
        "darht", heterogeneous.student, heterogeneous.teachers, **ATTACK, **options
    )
    assert_five_steps_agree(method, heterogeneous, *by_hand(heterogeneous, **hand))


def test_five_fp32_steps(heterogeneous):
    single = in_fp32(heterogeneous)
    single.teachers = [teacher.float() for teacher in single.teachers]
    method = methods.build("darht", single.student, single.teachers, **ATTACK)
    assert_fp32_agrees(method, single, *by_hand(single))


def test_passes_and_what_the_teachers_see(heterogeneous):
    x, y = heterogeneous.batch
    method = methods.build(
        "darht", heterogeneous.student, heterogeneous.teachers, clean_weight=1.0, **ATTACK
    )
    x_adv = method.attack(x, y)
    passes = Passes(heterogeneous.student, x=x, x_adv=x_adv)
    seen = []
    heterogeneous.teachers[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method.outer(x, x_adv, y)
    assert passes.seen == ["x_adv", "x"]
    assert [torch.equal(u, v) for u, v in zip(seen, (x_adv, x), strict=True)] == [True, True]


def test_attack_raises_the_loss_of_the_combined_prediction(heterogeneous):
    x, y = heterogeneous.batch
    student = heterogeneous.student.eval()
    method = methods.build("darht", student, heterogeneous.teachers, **ATTACK)
    before, after = (
        F.cross_entropy(student(u), y, reduction="none") for u in (x, method.attack(x, y))
    )
    assert (after > before).all()


def test_training_brings_each_row_to_its_teacher(heterogeneous):
    x, y = heterogeneous.batch
    method = methods.build("darht", heterogeneous.student, heterogeneous.teachers, eps=0.0)
    optimizer = sgd(heterogeneous.student)
    for _ in range(60):
        loss, _ = method(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rows = heterogeneous.student.map(x).softmax(2)
    for own, teacher in enumerate(heterogeneous.teachers):
        distances = (rows - teacher(x).softmax(1)[:, None]).abs().mean((0, 2))
        assert distances.argmin() == own


def test_monte_carlo_dropout_of_a_preset(setting):
    make = methods.registry.METHODS["darht"].make_student
    options = methods.preset("darht-mc-dropout").options_for()
    student = make(lambda outputs: network(0, outputs), 5, 2, options)
    assert (student.dropout, student.mc_samples) == (0.2, 8)
    method = methods.build("darht-mc-dropout", student, [setting.teacher, transformer()], **ATTACK)
    x, y = setting.batch
    loss, logs = method(x, y)
    loss.backward()
    assert student.head.weight.grad.abs().sum() > 0
    assert 0 <= logs["robust_accuracy"] <= 1
    student.eval()
    assert not torch.equal(student(x), student(x))
    assert method.attack(x, y).shape == x.shape


def test_learned_layer_over_the_rows_follows_the_labels(setting):
    make = methods.registry.METHODS["darht"].make_student
    options = {"combine": "layer", "label_weight": 0.5}
    student = make(lambda outputs: network(0, outputs), 5, 2, options)
    assert student.row_weights.tolist() == [0.5, 0.5]
    method = methods.build("darht", student, [setting.teacher, transformer()], **ATTACK, **options)
    losses_seen = train_with(method, setting.batches)
    assert all(torch.isfinite(torch.tensor(losses_seen)))
    assert not torch.allclose(student.row_weights, torch.full((2,), 0.5, dtype=torch.float64))
    with pytest.raises(ValueError, match="label_weight must be above 0 with combine 'layer'"):
        methods.registry.METHODS["darht"].plain_options({"combine": "layer"})


def test_draws_in_training_are_each_taught(setting):
    teachers = [setting.teacher, transformer()]
    make = methods.registry.METHODS["darht"].make_student
    options = {"dropout": 0.3, "mc_train_samples": 3, "label_weight": 0.25}
    student = make(lambda outputs: network(0, outputs), 5, 2, options)
    method = methods.build("darht", student, teachers, **ATTACK, **options)
    x, y = setting.batch
    x_adv = method.attack(x, y)
    torch.manual_seed(4)
    loss, _ = method.outer(x, x_adv, y)
    torch.manual_seed(4)
    draws = student.map(x_adv).view(3, len(x), 2, 5)
    assert not torch.equal(draws[0], draws[1])
    targets = [teacher(x_adv) for teacher in teachers]
    distilled = sum(losses.darht(rows, targets) for rows in draws) / 3
    labels = F.nll_loss(draws.softmax(3).mean((0, 2)).log(), y)
    torch.testing.assert_close(loss, 0.75 * distilled + 0.25 * labels, rtol=1e-10, atol=0)
    with pytest.raises(ValueError, match="option mc_train_samples must be an integer above 0"):
        method.plain_options({"mc_train_samples": 0})


def test_a_student_without_the_rows_is_one_sentence(setting):
    teachers = [setting.teacher, transformer()]
    with pytest.raises(ValueError, match="student must be a fastard.models.LogitMap of 2 teacher"):
        methods.build("darht", setting.student, teachers)
    student = LogitMap(network(0, 15), 3, 5)
    with pytest.raises(ValueError, match="of 2 teachers, .* but is one of 3"):
        methods.build("darht", student, teachers)
    student = LogitMap(network(0, 10), 2, 5)
    with pytest.raises(ValueError, match="option teacher_weights must be 2, one for each"):
        methods.build("darht", student, teachers, teacher_weights=(1.0,))
    for wrong in ((1.0, -1.0), "1;2", 3.0):
        with pytest.raises(ValueError, match="option teacher_weights must be numbers of at"):
            methods.build("darht", student, teachers, teacher_weights=wrong)
    method = methods.build("darht", student, teachers, teacher_weights="0.25,0.75")
    assert method.options.teacher_weights == (0.25, 0.75)


def test_loss_and_gradient():
    torch.manual_seed(0)
    rows = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    teachers = [torch.randn(4, 5, dtype=torch.float64) for _ in range(3)]
    ours = losses.darht(rows, teachers, 2.0)
    expected = 0.0
    for i, logits in enumerate(teachers):
        p, q = (logits / 2).softmax(1), (rows[:, i] / 2).softmax(1)
        expected = expected + 4 / 3 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    (a,), (b,) = torch.autograd.grad(ours, rows), torch.autograd.grad(expected, rows)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="teacher_logits must be those of 3 teachers"):
        losses.darht(rows, teachers[:2])
    with pytest.raises(ValueError, match="weights must be 3, one for each teacher"):
        losses.darht(rows, teachers, weights=(1.0,))
