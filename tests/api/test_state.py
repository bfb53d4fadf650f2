"""An attack leaves no trace, also when it raises, in every grad mode and inside every wrapper."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastard
from tests.api.models import batch, small_net


def snapshot(net: nn.Module):
    """Everything that an attack must not change."""
    return {
        "training": [m.training for m in net.modules()],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "state": {k: v.clone() for k, v in net.state_dict().items()},
        "versions": [t._version for t in (*net.parameters(), *net.buffers())],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()],
        "grad_mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "generator": torch.get_rng_state(),
    }


def assert_same(before, after, *, rng: bool):
    for key in ("training", "requires_grad", "versions", "hooks", "grad_mode", "autocast"):
        assert before[key] == after[key], key
    for a, b in zip(before["grad"], after["grad"], strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
    for key, value in before["state"].items():
        assert torch.equal(value, after["state"][key]), key
    assert not rng or torch.equal(before["generator"], after["generator"])


@pytest.fixture
def net():
    """Train mode, but one BN frozen in eval; one frozen parameter; gradients of a step at hand."""
    net = small_net()
    net[4].eval()
    net[0].bias.requires_grad_(False)
    x, y, _ = batch()
    net[1].eval()
    F.cross_entropy(net(x), y).backward()
    net[1].train()
    return net


ATTACKS = {
    "pgd_kl": lambda net, x, y, t, **o: fastard.pgd_kl(net, x, t, **o),
    "pgd_ce": lambda net, x, y, t, **o: fastard.pgd_ce(net, x, y, **o),
    "margin": lambda net, x, y, t, **o: fastard.pgd(net, x, y, loss="margin", **o),
    "callable": lambda net, x, y, t, **o: fastard.pgd(net, x, y, loss=F.cross_entropy, **o),
    "pair": lambda net, x, y, t, **o: fastard.pgd_kl_pair(net, small_net(seed=1), x, **o),
    "fgsm": lambda net, x, y, t, **o: fastard.fgsm(net, x, y, **o),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_leaves_no_trace(net, name, precision):
    x, y, t = batch()
    images = x.clone()
    torch.manual_seed(1)
    before = snapshot(net)
    g = torch.Generator().manual_seed(0)
    ATTACKS[name](net, x, y, t, precision=precision, generator=g)
    if name != "pair":  # building the pair's teacher draws its weights
        assert_same(before, snapshot(net), rng=True)
    else:
        assert_same(before, snapshot(net), rng=False)
    assert torch.equal(x, images)


class Failing(nn.Module):
    """A network that raises at its n-th call."""

    def __init__(self, net, n):
        super().__init__()
        self.net, self.left = net, n

    def forward(self, x):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("the model broke")
        return self.net(x)


@pytest.mark.parametrize("call", [1, 2, 5])
@pytest.mark.parametrize("mode, bn_stats", [("eval", "update"), ("train", "frozen")])
def test_leaves_no_trace_when_the_model_raises(net, call, mode, bn_stats):
    x, _, t = batch()
    model = Failing(net, call).train()
    net[4].eval()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="the model broke"):
        fastard.pgd_kl(model, x, t, mode=mode, bn_stats=bn_stats, engine=False)
    after = snapshot(model)
    if mode == "train":
        before["versions"] = after["versions"]  # frozen statistics were written back
    assert_same(before, after, rng=True)


def test_leaves_no_trace_when_the_loss_raises(net):
    x, y, _ = batch()

    def loss(z, y):
        raise KeyboardInterrupt

    before = snapshot(net)
    with pytest.raises(KeyboardInterrupt):
        fastard.pgd(net, x, y, loss=loss)
    assert_same(before, snapshot(net), rng=True)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode])
def test_same_result_without_gradients_around(name, outside):
    net, (x, y, t) = small_net(), batch()
    results = []
    for context in (contextlib.nullcontext, outside):
        torch.manual_seed(1)
        with context():
            result = ATTACKS[name](net, x, y, t)
            results.append(result)
            assert not result.requires_grad
    assert torch.equal(*results) and not results[1].is_inference()


def test_images_and_targets_made_under_inference_mode():
    net = small_net()
    with torch.inference_mode():
        x, y, t = batch()
    torch.manual_seed(1)
    wanted = fastard.pgd_kl(net, x.clone(), t.clone())
    torch.manual_seed(1)
    assert torch.equal(fastard.pgd_kl(net, x, t), wanted)
    assert fastard.pgd_ce(net, x, y, norm="L2", mean=(0.5,) * 3, std=(0.2,) * 3).shape == x.shape


def test_parameters_made_under_inference_mode():
    with torch.inference_mode():
        net = small_net()
    plain = small_net()
    x, _, t = batch()
    torch.manual_seed(1)
    wanted = fastard.pgd_kl(plain, x, t)
    torch.manual_seed(1)
    assert torch.equal(fastard.pgd_kl(net, x, t), wanted)


def test_under_autocast_passes_are_bf16_and_the_head_fp32():
    net, (x, _, t) = small_net(), batch()
    seen = []
    hooks = [m.register_forward_hook(lambda m, i, o: seen.append((type(m).__name__, o.dtype)))
             for m in (net[0], net[9])]  # fmt: skip
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_adv = fastard.pgd_kl(net, x, t, steps=1)
        assert net(x)[0].dtype == torch.bfloat16
    for hook in hooks:
        hook.remove()
    assert x_adv.dtype == torch.float32
    assert seen[:2] == [("Conv2d", torch.bfloat16), ("Linear", torch.float32)]
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fastard.pgd_kl(net, x, t, steps=1, precision="fp32")


def test_fp32_is_fp32_inside_autocast():
    net, (x, _, t) = small_net(), batch()
    torch.manual_seed(1)
    wanted = fastard.pgd_kl(net, x, t)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fastard.pgd_kl(net, x, t, precision="fp32"), wanted)


def test_weights_changed_inside_one_autocast_block_are_seen():
    net, (x, _, t) = small_net(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(x)
        fastard.pgd_kl(net, x, t)
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(-1.5)
        torch.manual_seed(1)
        got = fastard.pgd_kl(net, x, t)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fastard.pgd_kl(net, x, t), got)


def test_data_parallel_and_compiled_modules_are_attacked_inside():
    net, (x, _, t) = small_net(), batch()
    torch.manual_seed(1)
    wanted = fastard.pgd_kl(net, x, t)
    for wrapped in (nn.DataParallel(net), torch.compile(net), nn.DataParallel(torch.compile(net))):
        torch.manual_seed(1)
        attack = fastard.PGD(wrapped)
        assert torch.equal(attack(x, t), wanted)
        assert attack.program.model is net and "inside" in attack.program.explain()


def test_ddp_is_attacked_inside(tmp_path):
    import torch.distributed as dist

    net, (x, _, t) = small_net(), batch()
    torch.manual_seed(1)
    wanted = fastard.pgd_kl(net, x, t)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        ddp = nn.parallel.DistributedDataParallel(net)
        torch.manual_seed(1)
        assert torch.equal(fastard.pgd_kl(ddp, x, t), wanted)
        assert all(p.grad is None for p in net.parameters())
    finally:
        dist.destroy_process_group()


def test_outer_backward_after_an_attack_is_unaffected():
    """The attack between forward and backward of a training step changes no gradient."""
    x, y, t = batch()
    grads = []
    for attacked in (False, True):
        net = small_net()
        net[6].p = 0.0
        loss = F.cross_entropy(net(x), y)
        if attacked:
            fastard.pgd_kl(net, x, t)
        loss.backward()
        grads.append([p.grad for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_networks_behind_a_function_are_attacked_in_eval_mode_too():
    x, y, _ = batch()
    for wrap in (
        lambda net: net.forward,
        lambda net: lambda v: net(v * 2 - 1),
        lambda net: functools.partial(lambda m, v: m(v), net),
    ):
        net = small_net()
        before = snapshot(net)
        generator = torch.Generator().manual_seed(0)
        fastard.pgd_ce(wrap(net), x, y, generator=generator)
        assert_same(before, snapshot(net), rng=True)


def test_a_refused_train_mode_attack_puts_statistics_back():
    x, _, t = batch()
    net = small_net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match="one column per class"):
        fastard.pgd_kl(net, x, t[:, :7], mode="train")
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def test_a_callable_loss_with_labels_made_under_inference_mode():
    net = small_net()
    with torch.inference_mode():
        x, y, _ = batch()
        assert fastard.pgd(net, x, y, loss=F.cross_entropy).shape == x.shape


@pytest.mark.parametrize("engine", [True, False])
def test_out_of_memory_is_torchs_own_error_and_leaves_no_trace(net, engine, monkeypatch):
    x, _, t = batch()
    net.train()
    fastard.pgd_kl(net, x, t, steps=1, engine=engine)
    before, calls = snapshot(net), []

    def step(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return args[0]

    monkeypatch.setattr(fastard.ops, "pgd_step_", step)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        fastard.pgd_kl(net, x, t, engine=engine)
    assert_same(before, snapshot(net), rng=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("engine", [True, False])
def test_a_device_out_of_memory(engine):
    net = fastard.models.build("resnet18").cuda().train()
    x, t = torch.rand(4096, 3, 32, 32, device="cuda"), torch.randn(4096, 10, device="cuda")
    fastard.pgd_kl(net, x[:4], t[:4], steps=1, engine=engine)
    before = snapshot(net)
    total = torch.cuda.get_device_properties(0).total_memory
    allowed = torch.cuda.memory_reserved() + (256 << 20)
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
    try:
        with pytest.raises(torch.OutOfMemoryError):
            fastard.pgd_kl(net, x, t, engine=engine)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert_same(before, snapshot(net), rng=False)
    assert fastard.pgd_kl(net, x[:4], t[:4], steps=1, engine=engine).shape == x[:4].shape
