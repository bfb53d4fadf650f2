"""What the attacks do: they raise their loss, stay feasible, and keep their options' promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastard
from fastard import ops
from tests.api.models import batch, small_net

BALLS = {"Linf": (8 / 255, 2 / 255, float("inf")), "L2": (0.5, 0.1, 2), "L1": (6.0, 1.5, 1)}


@pytest.fixture
def net():
    return small_net().eval()


def distance(a, x, order):
    return (a.double() - x.double()).flatten(1).norm(p=order, dim=1)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("start", [True, "gaussian", "uniform", False])
def test_raises_its_loss_inside_ball_and_box(net, norm, start):
    x, y, _ = batch(16)
    eps, alpha, order = BALLS[norm]
    x_adv, info = fastard.pgd(
        net, x, y, eps, alpha, norm=norm, random_start=start, return_info=True
    )
    clean = F.cross_entropy(net(x), y, reduction="none")
    assert (info.loss > clean).float().mean() >= 0.95
    assert (distance(x_adv, x, order) <= eps * (1 + 1e-5) + 1e-7).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize("loss", ["kl", "ce", "margin", "cw", "dlr", "mixture"])
@pytest.mark.parametrize("targeted", [False, True])
def test_every_loss_is_ascended(net, loss, targeted):
    x, y, t = batch(16)
    goal = (y + 1) % 10
    soft = loss in ("kl", "mixture")
    target = t if soft else (goal if targeted else y)
    labels = y if loss == "mixture" or (loss == "dlr" and targeted) else None
    x_adv, info = fastard.pgd(net, x, target, loss=loss, labels=labels, targeted=targeted,
                              kappa=50.0, return_info=True)  # fmt: skip
    before = ops.logit_loss(
        net(x), target, loss, labels=labels, targeted=targeted, kappa=50.0, mix=0.5
    )[0]
    after = ops.logit_loss(
        net(x_adv), target, loss, labels=labels, targeted=targeted, kappa=50.0, mix=0.5
    )[0]
    assert (after > before).float().mean() >= 0.9
    torch.testing.assert_close(info.loss, after, rtol=1e-4, atol=1e-5)


def test_targeted_ce_lowers_the_targets_cross_entropy(net):
    x, y, _ = batch(16)
    goal = (y + 1) % 10
    x_adv = fastard.pgd(net, x, goal, targeted=True)
    before, after = (F.cross_entropy(net(v), goal, reduction="none") for v in (x, x_adv))
    assert (after < before).all()


def test_per_sample_eps(net):
    x, y, _ = batch(8)
    eps = torch.linspace(0, 16 / 255, 8)
    x_adv = fastard.pgd_ce(net, x, y, eps, eps / 4)
    assert (distance(x_adv, x, float("inf")) <= eps + 1e-7).all()
    assert torch.equal(x_adv[0], x[0])
    torch.manual_seed(1)
    whole = fastard.pgd_ce(net, x, y, torch.full((8,), 8 / 255), torch.full((8,), 2 / 255))
    torch.manual_seed(1)
    assert torch.equal(fastard.pgd_ce(net, x, y), whole)


def test_restarts_keep_the_worst_case_of_each_sample(net):
    x, y, _ = batch(16)
    torch.manual_seed(1)
    singles = [fastard.pgd_ce(net, x, y, steps=2, return_info=True)[1].loss for _ in range(4)]
    torch.manual_seed(1)
    x_adv, info = fastard.pgd_ce(net, x, y, steps=2, n_restarts=4, return_info=True)
    torch.testing.assert_close(info.loss, torch.stack(singles).amax(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(info.loss, F.cross_entropy(net(x_adv), y, reduction="none"))
    assert info.iterations == 8


def test_info(net):
    x, y, _ = batch(4)
    x_adv, info = fastard.pgd_ce(net, x, y, steps=3, return_info=True)
    assert info.iterations == 3 and info.seconds > 0 and info.loss.shape == (4,)
    assert "compiled: 2 convolutions" in info.program and not info.broken.any()
    torch.testing.assert_close(info.loss, F.cross_entropy(net(x_adv), y, reduction="none"))


@pytest.mark.parametrize("norm", BALLS)
def test_mean_and_std_are_the_normalised_model(net, norm):
    x, y, _ = batch(8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    eps, alpha, _ = BALLS[norm]
    torch.manual_seed(1)
    wanted = fastard.pgd_ce(lambda v: net((v - m) / s), x, y, eps, alpha, norm=norm)
    torch.manual_seed(1)
    got = fastard.pgd_ce(net, x, y, eps, alpha, norm=norm, mean=mean, std=std)
    # The two round the normalised input's gradient differently: a few signs near 0 may flip.
    assert ((got - wanted).abs() > 1e-5).float().mean() < 0.01


def test_pair_with_a_normalised_student(net):
    x, _, _ = batch(8)
    teacher = small_net(seed=3).eval()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    torch.manual_seed(1)
    wanted = fastard.pgd_kl_pair(lambda v: net((v - m) / s), teacher, x)
    torch.manual_seed(1)
    got, info = fastard.pgd_kl_pair(net, teacher, x, mean=mean, std=std, return_info=True)
    assert ((got - wanted).abs() > 1e-5).float().mean() < 0.01
    kl = F.kl_div(net((got - m) / s).log_softmax(1), teacher(got).softmax(1), reduction="none")
    torch.testing.assert_close(info.loss, kl.sum(1), rtol=1e-4, atol=1e-6)


def test_another_box(net):
    x, y, _ = batch(4)
    wide = x * 2 - 1
    x_adv = fastard.pgd_ce(net, wide, y, 0.1, 0.05, clip_min=-1.0, clip_max=1.0)
    assert x_adv.min() >= -1 and x_adv.max() <= 1 and x_adv.min() < -0.9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_stay_in_ball_and_box(net, dtype):
    x, y, _ = batch(4)
    x = x.to(dtype)
    x_adv = fastard.pgd_ce(net, x, y)
    assert x_adv.dtype == dtype
    assert (distance(x_adv, x, float("inf")) <= 8 / 255 * (1 + 1e-6)).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1


def test_fp64_images(net):
    x, y, _ = batch(4)
    x_adv = fastard.pgd_ce(net.double(), x.double(), y)
    assert x_adv.dtype == torch.float64
    net.float()


def test_result_has_the_images_memory_format(net):
    x, y, _ = batch(4)
    last = x.contiguous(memory_format=torch.channels_last)
    assert fastard.pgd_ce(net, last, y).is_contiguous(memory_format=torch.channels_last)
    assert fastard.pgd_ce(net, x, y).is_contiguous()
    sliced = torch.rand(4, 3, 16, 32)[..., ::2]
    kept = sliced.clone()
    x_adv = fastard.pgd_ce(net, sliced, y)
    assert torch.equal(sliced, kept)
    assert (distance(x_adv, sliced, float("inf")) <= 8 / 255 + 1e-7).all()


def test_empty_batch_returns_an_empty_batch(net):
    x, y, t = batch(4)
    assert fastard.pgd_ce(net, x[:0], y[:0]).shape == (0, 3, 16, 16)
    assert fastard.pgd_kl(net, x[:0], t[:0]).shape == (0, 3, 16, 16)
    x_adv, info = fastard.pgd_kl_pair(net, net, x[:0], return_info=True)
    assert x_adv.shape == (0, 3, 16, 16) and info.loss.shape == (0,)


def test_pgd_object_keeps_its_program_and_repeats(net):
    x, _, t = batch(4)
    attack = fastard.PGD(net, loss="kl", random_start=False)
    program = attack.program
    first = attack(x, t)
    assert torch.equal(attack(x, t), first) and attack.program is program
    assert "PGD(Sequential, loss='kl'" in repr(attack)


def test_results_are_detached_copies(net):
    x, _, t = batch(4)
    attack = fastard.PGD(net, random_start=False)
    first = attack(x, t)
    kept = first.clone()
    attack(x, -t)
    assert torch.equal(first, kept) and not first.requires_grad


def test_train_mode_attack_updates_statistics_unless_frozen():
    x, y, _ = batch(8)
    net = small_net()
    before = net[1].running_mean.clone()
    fastard.pgd_ce(net, x, y, mode="train", bn_stats="frozen")
    assert torch.equal(net[1].running_mean, before) and net[1].num_batches_tracked == 0
    fastard.pgd_ce(net, x, y, steps=7, mode="train")
    assert net[1].num_batches_tracked == 7 and not torch.equal(net[1].running_mean, before)


def test_nan_gradients_are_reported():
    x, y, _ = batch(4)

    class BadBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            return v.clone()

        @staticmethod
        def backward(ctx, grad):
            grad = grad.clone()
            grad[1] = float("nan")
            return grad

    def model(v):
        return BadBackward.apply(v).flatten(1)[:, :10]

    x_adv, info = fastard.pgd_ce(model, x, y, random_start=False, return_info=True)
    assert info.broken.tolist() == [False, True, False, False]
    assert torch.equal(x_adv[1], x[1])


def test_asking_for_information_moves_no_statistics():
    x, y, _ = batch(8)
    updates = []
    for options in ({}, {"return_info": True}, {"n_restarts": 1, "return_info": True}):
        net = small_net()
        fastard.pgd_ce(net, x, y, steps=5, mode="train", **options)
        updates.append(int(net[1].num_batches_tracked))
    assert updates == [5, 5, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("same", [True, False])
def test_models_of_another_precision(dtype, same):
    x, y, t = batch(8)
    net = small_net().eval().to(dtype)
    images = x.to(dtype) if same else x
    for x_adv in (
        fastard.pgd_ce(net, images, y),
        fastard.pgd_kl(net, images, t, norm="L2", eps=0.5, alpha=0.1),
        fastard.pgd_ce(net, images, y, mean=(0.5,) * 3, std=(0.2,) * 3),
        fastard.pgd_kl_pair(net, small_net(seed=1), images),
        fastard.pgd_kl_pair(small_net(seed=1), net, images),
    ):
        assert x_adv.dtype == images.dtype and not torch.equal(x_adv, images)
        assert torch.isfinite(x_adv).all()


def test_a_half_model_under_autocast(net):
    x, y, _ = batch(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fastard.pgd_ce(net.bfloat16(), x, y).dtype == torch.float32
    net.float()


def test_numpy_numbers_and_shaped_statistics(net):
    np = pytest.importorskip("numpy")
    x, y, _ = batch(4)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])
    torch.manual_seed(1)
    wanted = fastard.pgd_ce(net, x, y, 0.03, steps=3, mean=mean, std=std)
    torch.manual_seed(1)
    got = fastard.pgd_ce(net, x, y, np.float64(0.03), steps=np.int64(3),
                         mean=mean.view(3, 1, 1), std=std.view(1, 3, 1, 1))  # fmt: skip
    assert torch.equal(got, wanted)
    assert fastard.pgd_ce(net, x, y, mean=0.5, std=0.25).shape == x.shape


def test_one_attack_from_several_threads(net):
    from concurrent.futures import ThreadPoolExecutor

    x, _, t = batch(4)
    attack = fastard.PGD(net, random_start=False, steps=3)
    wanted = attack(x, t)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: attack(x, t), range(24)))
    assert all(torch.equal(r, wanted) for r in results)
