"""torchattacks' classes against its published behaviour."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastard
from fastard.compat import torchattacks
from tests.api.models import batch, small_net

EPS, ALPHA = 8 / 255, 2 / 255
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def scaled(values):
    return torch.tensor(values).view(1, 3, 1, 1)


def published_pgd(model, x, y, side=1, steps=4):
    x_adv = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(side * F.cross_entropy(model(x_adv), y), x_adv)
        delta = (x_adv.detach() + ALPHA * grad.sign() - x).clamp(-EPS, EPS)
        x_adv = (x + delta).clamp(0, 1)
    return x_adv


def published_pgdl2(model, x, y, steps=4):
    delta = torch.empty_like(x).normal_()
    n = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    delta *= torch.zeros_like(n).uniform_(0, 1) / n * 1.0
    x_adv = (x + delta).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
        grad /= grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-10
        delta = x_adv.detach() + 0.2 * grad - x
        factor = (1.0 / delta.flatten(1).norm(dim=1)).clamp(max=1)
        x_adv = (x + delta * factor.view(-1, 1, 1, 1)).clamp(0, 1)
    return x_adv


def published_tpgd(model, x, steps=4):
    target = model(x).detach().softmax(1)
    x_adv = (x + 0.001 * torch.randn(x.shape).to(x)).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        kl = F.kl_div(model(x_adv).log_softmax(1), target, reduction="sum")
        (grad,) = torch.autograd.grad(kl, x_adv)
        x_adv = x_adv.detach() + ALPHA * grad.sign()
        x_adv = (x + (x_adv - x).clamp(-EPS, EPS)).clamp(0, 1)
    return x_adv


def seeded(attack, *arguments):
    torch.manual_seed(7)
    return attack(*arguments)


def assert_close(mine, expected, share=0.002, atol=1e-6):
    """Equal up to rounding, but where a sign was rounding."""
    assert ((mine - expected).abs() > atol).float().mean() < share


def test_pgd_and_modes_afterwards():
    net, (x, y, _) = small_net(), batch()
    net[4].eval()
    flags = [m.training for m in net.modules()]
    mine = seeded(torchattacks.PGD(net, steps=4), x, y)
    assert [m.training for m in net.modules()] == flags
    assert_close(mine, seeded(published_pgd, net.eval(), x, y))


def test_fgsm():
    net, (x, y, _) = small_net().eval(), batch()
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(net(leaf), y), leaf)
    assert_close(torchattacks.FGSM(net)(x, y), (x + EPS * grad.sign()).clamp(0, 1))


def test_pgdl2():
    net, (x, y, _) = small_net().eval(), batch()
    mine = seeded(torchattacks.PGDL2(net, steps=4), x, y)
    torch.testing.assert_close(mine, seeded(published_pgdl2, net, x, y), rtol=0, atol=1e-5)
    with pytest.warns(UserWarning, match="eps_for_division is 0.1"):
        torchattacks.PGDL2(net, eps_for_division=0.1)


def test_tpgd():
    # In fp64, for the loss starts at 1e-6, where fp32's signs are rounding.
    net, x = small_net().eval().double(), batch()[0].double()
    mine = seeded(torchattacks.TPGD(net, steps=4), x)
    assert_close(mine, seeded(published_tpgd, net, x))


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_draws_from_its_seed_alone(loss):
    net, (x, _, _) = small_net().eval(), batch()
    y = net(x).argmax(1)
    before = torch.get_rng_state()
    mine = torchattacks.APGD(net, eps=0.1, seed=5, loss=loss, n_restarts=2)(x, y)
    assert torch.equal(torch.get_rng_state(), before)
    expected = fastard.apgd(
        net, x, y, eps=0.1, steps=10, loss=loss, n_restarts=2,
        generator=torch.Generator().manual_seed(5))  # fmt: skip
    assert torch.equal(mine, expected) and not torch.equal(mine, x)


def least_likely(net, x, y, k):
    """In words: of the classes but y, the one with the k-th smallest logit."""
    found = []
    for row, label in zip(net(x), y, strict=True):
        others = [c for c in range(len(row)) if c != label]
        found.append(sorted(others, key=lambda c, row=row: row[c])[k - 1])
    return torch.tensor(found)


def random_class(net, x, y):
    found = []
    for label in y:
        others = [c for c in range(10) if c != label]
        found.append(others[int(9 * torch.rand([1]))])
    return torch.tensor(found)


@pytest.mark.parametrize(
    "mode, arguments, targets",
    [
        ("by_function", (lambda x, y: (y + 1) % 10,), lambda net, x, y: (y + 1) % 10),
        ("by_label", (), lambda net, x, y: y),
        ("least_likely", (2,), lambda net, x, y: least_likely(net, x, y, 2)),
        ("random", (), random_class),
    ],
)
def test_targeted_modes(mode, arguments, targets, capsys):
    net, (x, y, _) = small_net().eval(), batch()
    attack = torchattacks.PGD(net, steps=4)
    getattr(attack, f"set_mode_targeted_{mode}")(*arguments)
    assert attack.targeted and attack.get_mode().startswith("targeted(")
    assert attack.get_mode() in capsys.readouterr().out
    mine = seeded(attack, x, y)
    torch.manual_seed(7)
    expected = published_pgd(net, x, targets(net, x, y), side=-1)
    assert_close(mine, expected)
    attack.set_mode_default()
    assert attack.get_mode() == "default"
    assert_close(seeded(attack, x, y), seeded(published_pgd, net, x, y))


@pytest.mark.parametrize("name", ["TPGD", "APGD"])
def test_untargeted_attacks_refuse_targets(name):
    attack = getattr(torchattacks, name)(small_net())
    with pytest.raises(ValueError, match=f"Targeted mode is not supported by {name}"):
        attack.set_mode_targeted_random()
    assert attack.get_mode() == "default"


def test_normalised_inputs_are_attacked_in_pixels():
    net, (x, y, _) = small_net().eval(), batch()
    x[0] = 0.0
    x[1] = 1.0
    normalized = (x - scaled(MEAN)) / scaled(STD)
    attack = torchattacks.PGD(net, steps=4)
    attack.set_normalization_used(MEAN, STD)
    mine = seeded(attack, normalized, y) * scaled(STD) + scaled(MEAN)
    expected = seeded(published_pgd, lambda v: net((v - scaled(MEAN)) / scaled(STD)), x, y)
    assert_close(mine, expected, atol=1e-5)
    with pytest.raises(ValueError, match="x must lie in"):
        attack(normalized * 2, y)
    attack.set_return_type("int")
    assert_close(seeded(attack, normalized, y).float() / 255, expected, 0.01, atol=1 / 255 + 1e-6)


@pytest.mark.parametrize("batchnorm", [True, False])
def test_model_training_mode(batchnorm):
    nets = [small_net().eval() for _ in range(2)]
    x, y, _ = batch()
    attack = torchattacks.PGD(nets[0], steps=4)
    attack.set_model_training_mode(True, batchnorm_training=batchnorm, dropout_training=False)
    mine = seeded(attack, x, y)
    assert not any(m.training for m in nets[0].modules())
    for place in (1, 4):
        nets[1][place].train(batchnorm)
    assert_close(mine, seeded(published_pgd, nets[1], x, y))
    for a, b in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_int_images_settings_read_at_each_call_and_repr():
    net, (x, y, _) = small_net(), batch()
    attack = torchattacks.PGD(net, random_start=False)
    attack.eps = 0.0
    assert torch.equal(attack(x, y), x)
    attack.set_return_type("int")
    assert torch.equal(attack(x, y), (x * 255).to(torch.uint8))
    assert repr(attack).startswith("PGD(") and "eps=0.0" in repr(attack)
    with pytest.raises(ValueError, match="unknown return type 'uint8'"):
        attack.set_return_type("uint8")
    with pytest.raises(ValueError, match="PGD needs labels"):
        attack(x)


def test_an_attack_that_is_not_here():
    with pytest.raises(AttributeError, match="has APGD, FGSM, PGD, PGDL2, TPGD, but no 'CW'"):
        torchattacks.CW  # noqa: B018
