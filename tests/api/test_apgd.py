"""`apgd` against the official code's behaviour."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastard
from fastard import ops
from fastard.attacks import Moves
from fastard.attacks.apgd import apgd as search
from fastard.attacks.apgd_schedule import checkpoints, first_marks, large_radii
from fastard.kinds import Norm
from fastard.reference_apgd import BACK, BEST_LOSS, SIZE, halved
from tests.api import eager_apgd
from tests.api.models import batch, small_net
from tests.api.test_state import assert_same, snapshot

NORMS = [("Linf", 0.1), ("L2", 1.5), ("L1", 20.0)]


def setting(n=8, dtype=torch.float64):
    """A network, its own labels but for one, and images of fp32 values."""
    net, (x, _, _) = small_net().eval().to(dtype), batch(n)
    y = net(x.to(dtype)).argmax(1)
    y[0] = (y[0] + 1) % 10
    return net, x.to(dtype), y


def test_checkpoints_of_a_hundred():
    found = checkpoints(100)
    assert [i + 1 for i in found] == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == {0: 1} and list(checkpoints(10)) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_first_window_of_rises_below_the_start_halves_nothing():
    """The official code's memory begins as "halved": being stuck counts from the second window."""
    best = torch.tensor([10.0, 10.0])
    marks = first_marks(best, torch.rand(2, 3), 1.0, Norm.Linf, best, True)
    assert torch.equal(marks[SIZE], torch.tensor([2.0, 2.0]))
    looks, back = checkpoints(10), []
    for i in range(4):  # windows of 2, then 1; the second sample's loss falls
        window = looks.get(i, 0)
        marks = halved(marks, torch.tensor([i + 1.0, -i - 1.0]), window, 0.75)
        back.append((marks[BACK] > 0).tolist() if window else None)
    assert back == [None, [False, True], [True, True], [False, True]]
    assert marks[SIZE].tolist() == [1.0, 0.25] and torch.equal(marks[BEST_LOSS], best)


def test_the_schedule_of_larger_radii():
    assert large_radii(1.0, 100) == [(3.0, 30), (2.0, 30), (1.0, 40)]
    assert [steps for _, steps in large_radii(12.0, 25)] == [8, 8, 9]


@pytest.mark.parametrize("norm, eps", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_best_losses_and_images_are_the_plain_loops(norm, eps, loss):
    net, x, y = setting()
    torch.manual_seed(5)
    noise = (torch.rand if norm == "Linf" else torch.randn)(x.shape).double()
    torch.manual_seed(5)
    adv, info = fastard.apgd(
        net, x, y, norm, eps, 30, loss=loss, best_loss=True, return_info=True, engine=False
    )
    for i in range(len(x)):
        best, value, _ = eager_apgd.run(net, x[i], y[i], noise[i], norm, eps, 30, loss)
        assert info.loss[i].item() == pytest.approx(value, rel=1e-7, abs=1e-9)
        torch.testing.assert_close(adv[i], best, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "norm, eps, loss",
    [("Linf", 0.1, "ce"), ("L2", 3.0, "ce"), ("Linf", 0.07, "dlr-targeted"),
     ("L2", 1.5, "dlr-targeted")],
)  # fmt: skip
def test_survivors_alone_meet_the_next_run_and_its_noise(norm, eps, loss):
    net, x, y = setting(12)
    runs = range(2, 5) if loss == "dlr-targeted" else range(2)
    torch.manual_seed(5)
    adv, info = fastard.apgd(
        net, x, y, norm, eps, 12, loss=loss, n_restarts=2 if loss == "ce" else 1,
        n_target_classes=3, return_info=True, engine=False)  # fmt: skip
    torch.manual_seed(5)
    z = net(x)
    alive, wanted = (z.argmax(1) == y).tolist(), x.clone()
    assert alive.count(False) == 1
    for k in runs:
        left = [i for i, is_alive in enumerate(alive) if is_alive]
        noise = (torch.rand if norm == "Linf" else torch.randn)(len(left), *x.shape[1:]).double()
        for i, own in zip(left, noise, strict=True):
            target = z[i].argsort()[-k] if loss == "dlr-targeted" else None
            loss_name = "ce" if loss == "ce" else "dlr"
            fooled = eager_apgd.run(net, x[i], y[i], own, norm, eps, 12, loss_name, target)[2]
            if fooled is not None:
                alive[i], wanted[i] = False, fooled
    assert 0 < sum(alive) < 11, "the setting breaks some images and not all"
    torch.testing.assert_close(adv, wanted, rtol=0, atol=1e-6)
    assert info.robust.tolist() == alive
    assert info.loss[0] == -torch.inf and info.loss[1:].isfinite().all()


@pytest.mark.parametrize("norm, eps", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
def test_against_the_official_package(norm, eps, loss):
    official = pytest.importorskip(
        "pyautoattack.autopgd_base", reason="pyautoattack is not installed"
    )
    net64, x, y = setting(16)
    x = x.float()

    def net(v):  # fp64 gradients of the official code's fp32 images: signs are not rounding
        return net64(v.double()).float()

    options = {"n_iter": 20, "norm": norm, "eps": eps, "seed": 3, "device": "cpu"}
    if loss == "dlr-targeted":
        attack = official.APGDAttack_targeted(net, n_target_classes=3, **options)
    else:
        attack = official.APGDAttack(net, loss=loss, n_restarts=2, **options)
    wanted = attack.perturb(x.clone(), y.clone())
    given = {"loss": loss, "n_restarts": 1 if loss == "dlr-targeted" else 2, "n_target_classes": 3}
    generator = torch.Generator().manual_seed(3)
    adv = fastard.apgd(net, x, y, norm, eps, 20, generator=generator, **given)
    assert ((net(adv).argmax(1) == y) != (net(wanted).argmax(1) == y)).sum() <= 1
    if loss == "dlr-targeted":
        return
    torch.manual_seed(3)
    wanted = attack.perturb(x.clone(), y.clone(), best_loss=True)
    generator.manual_seed(3)
    best, info = fastard.apgd(
        net, x, y, norm, eps, 20, generator=generator, best_loss=True, return_info=True, **given
    )
    rows = ops.logit_loss(net(wanted).detach(), y, loss)[0]
    torch.testing.assert_close(info.loss, rows, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(info.loss.mean(), rows.mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(info.loss, ops.logit_loss(net(best).detach(), y, loss)[0])


def test_larger_radii_against_the_official_package():
    official = pytest.importorskip(
        "pyautoattack.autopgd_base", reason="pyautoattack is not installed"
    )
    net64, x, y = setting(16)
    x = x.float()

    def net(v):
        return net64(v.double()).float()

    attack = official.APGDAttack(
        net, n_iter=20, norm="L1", eps=40.0, n_restarts=2, seed=3, use_largereps=True
    )
    wanted = attack.perturb(x.clone(), y.clone())
    generator = torch.Generator().manual_seed(3)
    adv, info = fastard.apgd(
        net, x, y, "L1", 40.0, 20, n_restarts=2, large_eps=True, generator=generator,
        return_info=True)  # fmt: skip
    assert ((net(adv).argmax(1) == y) != (net(wanted).argmax(1) == y)).sum() <= 1
    assert ((adv - x).abs().flatten(1).sum(1) <= 40 * (1 + 1e-5)).all()
    assert 0 < info.robust.sum() < 15


class NothingRead(TorchDispatchMode):
    """Refuses what makes the host wait for the device."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"), name
        if name in ("index", "index_put_"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), name
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("norm, eps", NORMS)
def test_the_host_reads_nothing_inside_a_run(norm, eps):
    x, y = torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.int64)
    weight = torch.randn(48, 5)

    def query(v):
        loss, d = ops.logit_loss(v.flatten(1) @ weight, y, "ce")
        return loss, (d @ weight.T).view_as(v), (v.flatten(1) @ weight).argmax(1) == y

    moves = Moves(eps, 0.0, Norm[norm], 0.0, 1.0)
    with NothingRead():
        found = search(query, x, x.clone(), moves, 20)
    assert (found.loss > query(x)[0]).all()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NothingRead():
        found.loss.sum().item()


@pytest.mark.parametrize("norm, eps", NORMS)
def test_ball_box_program_and_no_trace(norm, eps):
    net, (x, y, _) = small_net(), batch()
    net[4].eval()
    before = snapshot(net)
    images = x.clone()
    per_sample = torch.linspace(0.2, 1, len(x)) * eps
    adv, info = fastard.apgd(
        net, x, y, norm, per_sample, 15, mean=(0.5,) * 3, std=(0.3, 0.2, 0.25), best_loss=True,
        generator=torch.Generator().manual_seed(1), return_info=True)  # fmt: skip
    assert_same(before, snapshot(net), rng=True)
    assert torch.equal(x, images) and "fused" in info.program and info.iterations == 15
    order = {"Linf": torch.inf, "L2": 2, "L1": 1}[norm]
    size = (adv - x).flatten(1).norm(p=order, dim=1)
    assert (size <= per_sample * (1 + 1e-4)).all() and adv.min() >= 0 and adv.max() <= 1
    assert (size > 0.5 * per_sample).all() and not info.broken.any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = fastard.apgd(
            net, x, y, norm, per_sample, 15, mean=(0.5,) * 3, std=(0.3, 0.2, 0.25), best_loss=True,
            generator=torch.Generator().manual_seed(1))  # fmt: skip
    assert torch.equal(adv, again)


def test_gradients_of_a_random_model_are_averaged():
    class Noisy(torch.nn.Module):
        calls = 0

        def forward(self, v):
            self.calls += 1
            return v.flatten(1)[:, :4] * (1 + torch.randn(()))

    model, x = Noisy(), torch.rand(2, 3, 4, 4)
    fastard.apgd(model, x, x.flatten(1)[:, :4].argmax(1), steps=3, eot_iter=5, best_loss=True,
                 engine=False)  # fmt: skip
    assert model.calls == 1 + 5 * 4


def test_memory_format_and_a_batch_with_gaps():
    net, (x, _, _) = small_net().eval(), batch()
    y, last = net(x).argmax(1), x.to(memory_format=torch.channels_last)
    options = {"eps": 0.1, "steps": 5, "engine": False}
    results = []
    for given in (x, last, torch.cat([x, x], 3)[..., :16]):
        torch.manual_seed(1)
        results.append(fastard.apgd(net, given, y, **options))
    assert results[1].stride() == last.stride() and results[2].is_contiguous()
    assert torch.equal(results[0], results[2])
    assert ((results[0] - results[1]).abs() > 1e-5).float().mean() < 0.05


def test_half_precision_and_empty_batches():
    net, (x, y, _) = small_net().eval(), batch()
    adv = fastard.apgd(net, x.bfloat16(), y, eps=0.1, steps=5)
    assert adv.dtype == torch.bfloat16
    assert (adv.float() - x.bfloat16().float()).abs().max() <= 0.1
    adv, info = fastard.apgd(net, x[:0], y[:0], return_info=True)
    assert adv.shape == x[:0].shape and len(info.robust) == len(info.loss) == 0


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"loss": "dlr-targetted"}, "unknown loss 'dlr-targetted' .did you mean 'dlr-targeted'"),
        ({"norm": "L3"}, "unknown norm 'L3'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"rho": 1.5}, "rho must lie in"),
        ({"eps": -0.1}, "eps must be finite and not negative"),
        ({"loss": "dlr-targeted", "best_loss": True}, "best_loss goes with loss 'ce' or 'dlr'"),
        ({"eot_iter": 0}, "eot_iter must be at least 1"),
        ({"large_eps": True}, "large_eps goes with norm 'L1'"),
        ({"large_eps": True, "norm": "L1", "steps": 2}, "steps must be at least 3"),
    ],
)
def test_bad_input(change, sentence):
    net, (x, y, _) = small_net(), batch()
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=sentence):
        fastard.apgd(net, x, y, **change)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_images_labels_and_logits():
    net, (x, y, _) = small_net(), batch()
    with pytest.raises(ValueError, match="x must lie in"):
        fastard.apgd(net, x * 2, y)
    with pytest.raises(ValueError, match=r"y must lie in \[0, 10\)"):
        fastard.apgd(net, x, y + 9)
    with pytest.raises(ValueError, match="needs at least 3 classes"):
        fastard.apgd(small_net(2), x, torch.zeros_like(y), loss="dlr", best_loss=True)
    with pytest.raises(ValueError, match="the model's logits must be finite"):
        fastard.apgd(lambda v: net(v) * torch.nan, x, y)
