"""AdvFunMatch: both directions against a hand-written loop, and the shared augmentation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard import losses, methods
from fastard.methods.strong_views import mixed, policy_views

from .loops import ALPHA, EPS, STEPS, Passes, ascend
from .steps import assert_five_steps_agree, assert_fp32_agrees, gaussian, in_fp32

ATTACK = {"eps": EPS, "alpha": ALPHA, "steps": STEPS}
DIRECTIONS = ["teacher||student", "student||teacher"]


def divergence(student_logits, teacher_logits, direction, t):
    p, q = (teacher_logits / t), (student_logits / t)
    if direction == "student||teacher":
        p, q = q, p
    return F.kl_div(q.log_softmax(1), p.log_softmax(1), reduction="sum", log_target=True)


def by_hand(setting, direction, t, clean_weight=0.0):
    student, teacher = setting.twin, setting.teacher

    def attack(x, y):
        return ascend(x, gaussian(x), lambda u: divergence(student(u), teacher(u), direction, t))

    def loss_of(x, x_adv, y):
        with torch.no_grad():
            target = teacher(x_adv)
        loss = t * t * divergence(student(x_adv), target, direction, t) / len(x)
        if clean_weight:
            with torch.no_grad():
                target = teacher(x)
            clean = t * t * divergence(student(x), target, direction, t) / len(x)
            loss = loss + clean_weight * clean
        return loss

    return attack, loss_of


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("t", [1.0, 4.0])
def test_five_steps_equal_the_loop(setting, direction, t):
    method = methods.build(
        "advfunmatch",
        setting.student,
        [setting.teacher],
        kl_direction=direction,
        temperature=t,
        **ATTACK,
    )
    assert_five_steps_agree(method, setting, *by_hand(setting, direction, t))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_five_steps_with_a_clean_term(setting, direction):
    method = methods.build(
        "advfunmatch",
        setting.student,
        [setting.teacher],
        kl_direction=direction,
        temperature=2.0,
        clean_weight=0.5,
        **ATTACK,
    )
    assert_five_steps_agree(method, setting, *by_hand(setting, direction, 2.0, 0.5))


def test_clean_term_is_of_the_augmented_images(setting):
    x, y = setting.batch
    method = methods.build(
        "advfunmatch", setting.student, [setting.teacher], mix="mixup", clean_weight=1.0, **ATTACK
    )
    torch.manual_seed(1)
    view = method.views(x)
    passes = Passes(setting.student, view=view, x=x)
    torch.manual_seed(1)
    _, logs = method(x, y)
    assert passes.seen == ["?", "view"]
    assert 0 <= logs["clean_accuracy"] <= 1


def test_five_fp32_steps(setting):
    single = in_fp32(setting)
    method = methods.build("advfunmatch", single.student, [single.teacher], **ATTACK)
    assert_fp32_agrees(method, single, *by_hand(single, DIRECTIONS[0], 1.0))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_loss_and_gradient(direction):
    torch.manual_seed(0)
    student = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 5, dtype=torch.float64)
    ours = losses.advfunmatch(student, teacher, 2.0, direction)
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    if direction == "student||teacher":
        p, q = q, p
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    (a,), (b,) = torch.autograd.grad(ours, student), torch.autograd.grad(expected, student)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_unknown_direction():
    with pytest.raises(ValueError, match="unknown kl_direction 'backwards'"):
        losses.advfunmatch(torch.zeros(2, 3), torch.zeros(2, 3), kl_direction="backwards")


@pytest.mark.parametrize("options", [{"augment": "randaugment"}, {"mix": "cutmix"}])
def test_attack_student_and_teacher_share_the_view(setting, options):
    x, y = setting.batch
    method = methods.build("advfunmatch", setting.student, [setting.teacher], **ATTACK, **options)
    attacked, seen = [], []
    attack = method.attack

    def record(x, y):
        attacked.append((x, attack(x, y)))
        return attacked[0][1]

    method.attack = record
    setting.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    passes = Passes(setting.student)
    torch.manual_seed(1)
    method(x, y)
    view, x_adv = attacked[0]
    assert not torch.equal(view, x)
    assert (x_adv - view).abs().max() <= EPS + 1e-9
    assert torch.equal(seen[-1], x_adv)
    assert passes.seen == ["?"]
    torch.manual_seed(1)
    assert torch.equal(method.views(x), view)


@pytest.mark.parametrize("augment", ["autoaugment", "randaugment"])
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_change_images_one_by_one(augment, channels):
    torch.manual_seed(0)
    x = torch.rand(1, channels, 8, 8).expand(12, -1, -1, -1)
    views = policy_views(x, augment)
    assert views.shape == x.shape
    assert views.dtype == x.dtype
    assert views.min() >= 0 and views.max() <= 1
    assert len({tuple(view.flatten().tolist()) for view in views}) > 2


def test_no_augmentation_is_the_image_itself():
    x = torch.rand(2, 3, 8, 8)
    assert policy_views(x, "none") is x
    assert mixed(x, "none") is x


def test_mixup_keeps_at_least_half_and_adds_the_neighbour():
    torch.manual_seed(0)
    x = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    shares = []
    for _ in range(20):
        views = mixed(x, "mixup")
        own = float(views[1].mean())
        assert 0.5 <= own <= 1
        torch.testing.assert_close(views, own * x + (1 - own) * x.roll(1, 0))
        shares.append(own)
    assert max(shares) - min(shares) > 0.2


def test_cutmix_puts_one_box_of_the_neighbour_in_each():
    torch.manual_seed(0)
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 16, 16)
    shares = []
    for _ in range(20):
        views = mixed(x, "cutmix")
        foreign = views != x
        assert torch.equal(foreign, foreign[:1, :1].expand_as(foreign))
        assert torch.equal(views[foreign], x.roll(1, 0)[foreign])
        rows, columns = foreign[0, 0].any(1).sum(), foreign[0, 0].any(0).sum()
        assert foreign[0, 0].sum() == rows * columns
        shares.append(float(foreign[0, 0].float().mean()))
    assert max(shares) <= 0.5
    assert max(shares) > 0.2


def test_either_mix_by_a_coin():
    torch.manual_seed(0)
    x = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    kinds = {len(mixed(x, "mixup-or-cutmix")[0].unique()) for _ in range(20)}
    assert kinds == {1, 2}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"augment": "autoagument"}, "unknown option augment 'autoagument' .did you mean"),
        ({"mix": "mixcut"}, "unknown option mix 'mixcut'"),
        ({"policy": "mnist"}, "unknown option policy 'mnist'"),
        ({"mix_alpha": 0}, "option mix_alpha must be above 0, but is 0"),
        ({"kl_direction": "both"}, "unknown option kl_direction 'both'"),
        ({"clean_weight": -1}, "option clean_weight must be a finite number of at least 0"),
    ],
)
def test_bad_option(setting, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        methods.build("advfunmatch", setting.student, [setting.teacher], **options)
