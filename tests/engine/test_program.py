"""`Program`: logits and input gradients equal autograd's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard import ops
from fastard.engine import InputGradient, PairGradient, Program, RowLoss
from fastard.engine import precision as precisions
from fastard.engine.gradient import representable
from fastard.kinds import LossKind
from tests.api.models import batch, small_net


@pytest.fixture
def net():
    return small_net().eval()


def autograd(net, x, dlogits):
    leaf = x.clone().requires_grad_()
    logits = net(leaf)
    return logits.detach(), torch.autograd.grad(logits, leaf, dlogits)[0]


def test_forward_and_vjp(net):
    x, _, d = batch()
    logits, dx = autograd(net, x, d)
    program = Program(net, engine=False)
    assert torch.equal(program.forward(x), logits)
    assert torch.equal(program.vjp(d), dx)
    program = Program(net)
    torch.testing.assert_close(program.forward(x), logits)
    torch.testing.assert_close(program.vjp(d), dx)


def test_several_vjps_after_one_forward(net):
    x, _, d = batch()
    program = Program(net)
    program.forward(x)
    first = program.vjp(d, retain=True)
    second = program.vjp(2 * d)
    torch.testing.assert_close(second, 2 * first)


def test_vjp_before_forward_is_refused(net):
    with pytest.raises(RuntimeError, match="vjp needs a forward before it"):
        Program(net).vjp(torch.zeros(1, 10))


def test_mean_and_std(net):
    x, _, d = batch()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    program = Program(net, mean=mean, std=std)
    logits, dx = autograd(lambda v: net((v - m) / s), x, d)
    torch.testing.assert_close(program.forward(x), logits)
    torch.testing.assert_close(program.vjp(d), dx)
    assert program.feed(x).std.tolist() == pytest.approx(std)
    assert not program.feed(x).is_x and Program(net).feed(x).is_x


def test_train_mode_networks_are_run_in_eval_mode():
    x, _, d = batch()
    net = small_net().train()
    program = Program(net)
    logits, _ = autograd(small_net().eval(), x, d)
    torch.testing.assert_close(program.forward(x), logits)
    assert all(m.training for m in net.modules())


def test_input_gradient_is_autograd_of_the_loss(net):
    x, y, t = batch()
    for kind, target, value in (
        (LossKind.kl, t, lambda z: F.kl_div(z.log_softmax(1), t.softmax(1), reduction="sum")),
        (LossKind.ce, y, lambda z: F.cross_entropy(z, y, reduction="sum")),
    ):
        leaf = x.clone().requires_grad_()
        total = value(net(leaf))
        (wanted,) = torch.autograd.grad(total, leaf)
        gradient = InputGradient(net, RowLoss(kind, target))
        loss, dx = gradient(x)
        torch.testing.assert_close(dx, wanted, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(loss.sum(), total.detach())
        torch.testing.assert_close(gradient.value(x), loss)


def test_no_graph_on_the_loss_and_none_left_behind(net):
    x, _, t = batch()
    gradient = InputGradient(net, RowLoss(LossKind.kl, t))
    loss, dx = gradient(x)
    assert not loss.requires_grad and not dx.requires_grad
    with gradient.program.running(x):
        gradient(gradient.program.prepared(x))
    assert gradient.program._passes is None


def test_pair_gradient_is_autograd_through_both(net):
    x, _, _ = batch()
    teacher = small_net(seed=1).eval()
    leaf = x.clone().requires_grad_()
    kl = F.kl_div(
        net(leaf).log_softmax(1), teacher(leaf).log_softmax(1), reduction="sum", log_target=True
    )
    (wanted,) = torch.autograd.grad(kl, leaf)
    pair = PairGradient(Program(net), Program(teacher))
    loss, through_student, through_teacher = pair(x, x)
    torch.testing.assert_close(through_student + through_teacher, wanted, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(loss.sum(), kl.detach())


def test_explain_names_what_runs(net):
    text = Program(net, precision="tf32").explain()
    assert "eager autograd" in text and "tf32 runs as fp32 on cpu" in text and "Sequential" in text
    assert "BN statistics frozen" in Program(net, mode="train", bn_stats="frozen").explain()


@pytest.mark.parametrize(
    "amx, avx, runs", [(True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")]
)
def test_bf16_on_the_cpu_where_the_machine_has_it(monkeypatch, amx, avx, runs):
    precisions.cpu_bf16.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    for asked in ("bf16", "fp16"):
        found = precisions.resolve(asked, "cpu")
        assert found.name == runs and found.reason
    precisions.cpu_bf16.cache_clear()


def test_bf16_logits_stay_near_fp32(net):
    x, _, _ = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = Program(net).forward(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, net(x), rtol=0.1, atol=0.05)
    assert not torch.equal(logits, logits.bfloat16().float())


def test_fp16_seeds_are_scaled_into_range():
    d = torch.randn(4, 10) * torch.tensor([[1e-9], [1e-3], [1.0], [0.0]])
    (scaled,) = representable(torch.float16, d)
    assert torch.isfinite(scaled).all() and (scaled[3] == 0).all()
    torch.testing.assert_close(scaled[:3].abs().amax(1), torch.full((3,), 64.0))
    torch.testing.assert_close(F.normalize(scaled[:3].double()), F.normalize(d[:3].double()))
    assert representable(torch.bfloat16, d)[0] is d
    pair = representable(torch.float16, d, 3 * d)
    torch.testing.assert_close(pair[1], 3 * pair[0])


def test_logits_of_a_linear_model_without_parameters_that_require_grad():
    x, _, d = batch()
    net = small_net().eval().requires_grad_(False)
    program = Program(net)
    _, dx = autograd(net, x, d)
    program.forward(x)
    torch.testing.assert_close(program.vjp(d), dx)
    loss, _ = ops.logit_loss(program.forward(x), d)
    assert loss.shape == (len(x),)


@pytest.mark.parametrize("setting", ["none", "tf32", "ieee"])
def test_the_callers_tf32_settings_are_left_as_they_were(setting, monkeypatch):
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        matmul.fp32_precision = setting
        for allowed, inside in ((True, "tf32"), (False, "ieee")):
            with precisions.tf32(allowed):
                assert (matmul.fp32_precision, conv.fp32_precision) == (inside, inside)
            assert (matmul.fp32_precision, conv.fp32_precision) == (setting, before[1])
    finally:
        matmul.fp32_precision, conv.fp32_precision = before
