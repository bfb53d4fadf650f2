"""IGDM over several bases against a hand-written loop; its point below x stays unclipped."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard import losses, methods

from .loops import ALPHA, EPS, STEPS, Passes, ascend, network
from .steps import assert_five_steps_agree, assert_fp32_agrees, gaussian, in_fp32
from .test_adaad import kl, pair_attack

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}
WEIGHT, EPOCH, EPOCHS = 5.0, 30, 200


def term(student_plus, student_minus, teacher, x_adv, below):
    with torch.no_grad():
        target = teacher(x_adv) - teacher(below)
    return WEIGHT * EPOCH / EPOCHS * kl(student_plus - student_minus, target)


def on_adaad(setting, faithful):
    student, teacher = setting.twin, setting.teacher

    def loss_of(x, x_adv, y):
        below = x - (x_adv - x)
        if faithful:
            plus, _, minus, adv = (student(u) for u in (x_adv, x, below, x_adv))
        else:
            plus = adv = student(x_adv)
            minus = student(below)
        with torch.no_grad():
            target = teacher(x_adv)
        return kl(adv, target) + term(plus, minus, teacher, x_adv, below)

    return pair_attack(student, teacher), loss_of


def on_rslad(setting):
    student, teacher = setting.twin, setting.teacher

    def attack(x, y):
        with torch.no_grad():
            p = teacher(x).softmax(1)
        return ascend(
            x,
            gaussian(x),
            lambda u: F.kl_div(student(u).log_softmax(1), p, reduction="sum"),
        )

    def loss_of(x, x_adv, y):
        below = x - (x_adv - x)
        with torch.no_grad():
            target = teacher(x)
        adv, clean, minus = student(x_adv), student(x), student(below)
        base = 5 / 6 * kl(adv, target) + 1 / 6 * kl(clean, target)
        return base + term(adv, minus, teacher, x_adv, below)

    return attack, loss_of


def on_ard(setting):
    student, teacher = setting.twin, setting.teacher

    def attack(x, y):
        start = (x + torch.rand(x.shape).to(x.dtype) * 2 * EPS - EPS).clamp(0, 1)
        return ascend(x, start, lambda u: F.cross_entropy(student(u), y))

    def loss_of(x, x_adv, y):
        below = x - (x_adv - x)
        with torch.no_grad():
            target = teacher(x)
        adv, minus = student(x_adv), student(below)
        return kl(adv, target) + term(adv, minus, teacher, x_adv, below)

    return attack, loss_of


def on_pgd_at(setting):
    student, teacher = setting.twin, setting.teacher

    def loss_of(x, x_adv, y):
        below = x - (x_adv - x)
        adv, minus = student(x_adv), student(below)
        return F.cross_entropy(adv, y) + term(adv, minus, teacher, x_adv, below)

    return on_ard(setting)[0], loss_of


def build(setting, base, **options):
    method = methods.build(
        "igdm", setting.student, [setting.teacher], base=base, **ATTACK, **options
    )
    method.on_epoch(EPOCH, EPOCHS)
    return method


@pytest.mark.parametrize("faithful", [False, True])
def test_five_steps_on_adaad(setting, faithful):
    method = build(setting, "adaad", reduction="batchmean", faithful=faithful)
    assert_five_steps_agree(method, setting, *on_adaad(setting, faithful))


def test_five_steps_on_rslad(setting):
    method = build(setting, "rslad-batchmean")
    assert_five_steps_agree(method, setting, *on_rslad(setting))


def test_five_steps_on_ard(setting):
    method = methods.build("igdm-ard", setting.student, [setting.teacher], **ATTACK)
    method.on_epoch(EPOCH, EPOCHS)
    assert_five_steps_agree(method, setting, *on_ard(setting))


def test_five_steps_on_pgd_at(setting):
    method = build(setting, "pgd-at")
    assert method.base.teachers == ()
    assert_five_steps_agree(method, setting, *on_pgd_at(setting))


@pytest.mark.parametrize("base", ["trades", "mart"])
def test_base_without_a_teacher_adds_the_term_of_its_own_teacher(setting, base):
    x, y = setting.batch
    method = build(setting, base, beta=2.0)
    assert method.base.options.beta == 2
    x_adv = method.attack(x, y)
    alone, alone_logs = method.base.outer(x, x_adv, y)
    loss, logs = method.outer(x, x_adv, y)
    below = 2 * x - x_adv
    with torch.no_grad():
        expected = term(
            setting.student(x_adv), setting.student(below), setting.teacher, x_adv, below
        )
    assert expected > 1e-6
    torch.testing.assert_close(loss - alone, expected, rtol=1e-8, atol=1e-12)
    assert logs["robust_accuracy"] == alone_logs["robust_accuracy"]


def test_base_without_a_teacher_takes_one_on_top():
    with pytest.raises(ValueError, match="'igdm' on base 'pgd-at' takes one teacher, but was giv"):
        methods.build("igdm", network(0), [network(1), network(2)], base="pgd-at")


def test_what_the_base_changes_on_a_data_set():
    igdm = methods.registry.METHODS["igdm"]
    for base, options in (
        ("rslad", {"scale": 10.0}),
        ("mtard", {"scale": 10.0}),
        ("adaad", {"reduction": "batchmean"}),
        ("saad", {}),
    ):
        assert igdm.data_options({"base": base}, "cifar100") == options
        assert igdm.data_options({"base": base}, "cifar10") == {}
    assert igdm.data_options({}, "cifar100") == {}
    rslad = methods.registry.METHODS["rslad"]
    assert rslad.data_options({}, "cifar100") == {}


def test_published_loss_on_rslad_for_cifar100(setting):
    options = methods.preset("igdm-rslad").options_for("cifar100")
    method = methods.build("igdm", setting.student, [setting.teacher], **options)
    base = method.base.options
    assert (base.reduction, base.scale, base.log_floor) == ("mean", 10.0, 1e-5)
    assert method.options.igdm_weight == 3
    x, y = setting.batch
    x_adv = method.attack(x, y)
    published = methods.build("rslad", setting.student, [setting.teacher], scale=10.0)
    torch.testing.assert_close(
        method.base.outer(x, x_adv, y)[0], published.outer(x, x_adv, y)[0], rtol=1e-12, atol=0
    )


def test_five_fp32_steps(setting):
    single = in_fp32(setting)
    method = build(single, "adaad-batchmean")
    assert_fp32_agrees(method, single, *on_adaad(single, False))


def test_point_below_is_not_clipped_and_the_passes_are_in_order(setting):
    _, y = setting.batch
    x = torch.zeros_like(setting.batch[0])
    method = build(setting, "adaad")
    x_adv = method.attack(x, y)
    below = -x_adv
    assert below.min() < -EPS / 2
    passes = Passes(setting.student, x=x, x_adv=x_adv, below=below)
    seen = []
    setting.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method.outer(x, x_adv, y)
    assert passes.seen == ["x_adv", "below"]
    assert len(seen) == 2
    assert torch.equal(seen[1], below)


def test_ramp_is_in_the_state_and_on_epoch_reaches_the_base(setting):
    method = build(setting, "adaiad")
    assert float(method.ramp) == pytest.approx(EPOCH / EPOCHS)
    assert method.base.epoch == EPOCH
    other = methods.build("igdm", setting.student, [setting.teacher], base="adaiad")
    assert float(other.ramp) == 1
    other.load_state_dict(method.state_dict())
    assert float(other.ramp) == float(method.ramp)
    assert other.base.epoch == EPOCH
    steady = build(setting, "adaad", ramp=False)
    assert float(steady.ramp) == 1


def test_views_of_the_base_are_shared(setting):
    x, y = setting.batch
    method = build(setting, "advfunmatch", mix="mixup")
    passes = Passes(setting.student, x=x)
    torch.manual_seed(0)
    view = method.views(x)
    assert not torch.equal(view, x)
    torch.manual_seed(0)
    attacked = []
    attack = method.base.attack
    method.base.attack = lambda x, y: attacked.append(x) or attack(x, y)
    method(x, y)
    assert torch.equal(attacked[0], view)
    assert passes.seen == ["?", "?"]


def test_options_reach_the_base_and_unknown_ones_are_refused(setting):
    method = build(setting, "rslad", adv_weight=0.5)
    assert method.base.options.adv_weight == 0.5
    assert method.base.options.eps == EPS
    known = methods.registry.METHODS["igdm"].plain_options
    assert known({"base": "rslad", "scale": 2.0}) == {"base": "rslad", "scale": 2.0}
    with pytest.raises(ValueError, match=r"option of method 'igdm': 'adv_wieght' .did you mean"):
        known({"base": "rslad", "adv_wieght": 0.5})
    with pytest.raises(ValueError, match="option adv_weight must be a number from 0 to 1"):
        known({"base": "rslad", "adv_weight": 3})
    with pytest.raises(ValueError, match="unknown method 'rslda'"):
        known({"base": "rslda"})
    for base in ("natural", "kd", "free", "igdm"):
        sentence = f"option base must be a method with a PGD attack of its own, but is '{base}'"
        with pytest.raises(ValueError, match=sentence):
            known({"base": base})


@pytest.mark.parametrize("distance", ["kl", "l1", "l2"])
def test_loss_and_gradient(distance):
    torch.manual_seed(0)
    logits = [torch.randn(4, 5, dtype=torch.float64) for _ in range(4)]
    plus, minus = logits[0].requires_grad_(), logits[1].requires_grad_()
    ours = losses.igdm(*logits, distance=distance)
    student, teacher = plus - minus, logits[2] - logits[3]
    expected = {
        "kl": (teacher.softmax(1) * (teacher.log_softmax(1) - student.log_softmax(1))).sum() / 4,
        "l1": F.l1_loss(student, teacher),
        "l2": F.mse_loss(student, teacher),
    }[distance]
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(ours, (plus, minus)),
        torch.autograd.grad(expected, (plus, minus)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_base_that_trains_its_teacher_is_refused(setting):
    with pytest.raises(ValueError, match="a method whose teachers stay fixed, but is 'lbgat'"):
        methods.build("igdm", setting.student, [setting.teacher], base="lbgat")
