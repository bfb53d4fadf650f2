"""What only the Triton kernels have: sizes at which they work otherwise, labels on the device.

In Triton's interpreter these run where tests/test_triton_interpreter.py starts them.
"""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from fastard import reference
from fastard.kinds import LossKind, Norm
from tests.ops.cases import NORMS, StepCase, assert_close, step_inputs

triton_kernels = pytest.importorskip("fastard.triton_kernels", exc_type=ImportError)
OPS = torch.ops.fastard_triton

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.parametrize(
        "device",
        [
            pytest.param(
                "cpu",
                marks=pytest.mark.skipif(
                    not triton_kernels.interpreted(),
                    reason="runs in the process of tests/test_triton_interpreter.py",
                ),
            ),
            pytest.param(
                "cuda",
                marks=[
                    pytest.mark.gpu,
                    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
                ],
            ),
        ],
    ),
]

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
# Above 4,096 elements a sample is shared by programs, or read again in every pass.
LARGE = (3, 3, 41, 43)
FEED = (torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3]))


def stepped(tensors, eps, alpha, norm, feed=None, mean=None, std=None):
    """The step by the Triton operator; its first tensor."""
    overload = OPS.pgd_step_.Tensor if isinstance(eps, torch.Tensor) else OPS.pgd_step_.Scalar
    overload(*tensors, eps, alpha, int(Norm[norm]), 0.0, 1.0, 0.2, feed, mean, std)
    return tensors[0]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
def test_step_of_large_samples(norm, dtype, layout, device):
    tensors = step_inputs(StepCase(norm, dtype, layout, LARGE), device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    eps, alpha = (
        torch.linspace(0, 2 * v, LARGE[0], dtype=wide, device=device) for v in NORMS[norm]
    )
    exact = reference.pgd_step(*(t.double() for t in tensors), eps.double(), alpha.double(), norm)
    plain = reference.pgd_step(*tensors, eps, alpha, norm)
    mean, std = (t.to(device) for t in FEED)
    feed = torch.empty_like(tensors[0], dtype=torch.float32)
    out = stepped(tensors, eps, alpha, norm, feed, mean, std)
    assert_close(out, exact, plain)
    torch.testing.assert_close(
        feed, reference.feed(out, torch.float32, mean, std), rtol=2e-7, atol=2e-7
    )


def test_a_sample_of_many_parts(device):
    """More than 256 parts of one block."""
    case = StepCase("L2", torch.float32, "contiguous", (1, 3, 420, 421))
    tensors = step_inputs(case, device)
    exact = reference.pgd_step(*(t.double() for t in tensors), *NORMS["L2"], "L2")
    assert_close(stepped(tensors, *NORMS["L2"], "L2"), exact)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
def test_start_of_large_samples(norm, dtype, clip, device):
    _, _, x = step_inputs(StepCase(norm, dtype, "contiguous", LARGE), device)
    noise = torch.randn(LARGE, generator=torch.Generator().manual_seed(1)).to(device)
    radius = torch.tensor([0.0, 0.5, 1.0], device=device)
    arguments = (0.7, "uniform", norm)
    exact = reference.random_start(
        x.double(), noise.double(), *arguments, radius.double(), clip=clip
    )
    plain = reference.random_start(x, noise, *arguments, radius, clip=clip)
    out = torch.empty_like(x)
    OPS.random_start_.Scalar(out, x, noise, radius, 0.7, int(Norm[norm]), 0, 0.0, clip, 0.0, 1.0)
    assert_close(out, exact, plain)


@pytest.mark.parametrize("norm", NORMS)
def test_places_in_64_bits_change_nothing(norm, device):
    """What more than 2^30 elements ask for, of a batch that fits here."""
    case = StepCase(norm, torch.float32, "channels_last", LARGE)
    mean, std = (t.to(device) for t in FEED)
    results = []
    for wide in (False, True):
        x_adv, grad, x = step_inputs(case, device)
        feed = torch.empty_like(x)
        eps, alpha = (torch.full((LARGE[0],), v, device=device) for v in NORMS[norm])
        calls = triton_kernels.step_calls(
            x_adv, grad, x, eps, alpha, int(Norm[norm]), 0.0, 1.0, 0.2, feed, mean, std
        )
        for call in calls:
            constants = dict(call.constants)
            if "WIDE" in constants:
                assert constants["WIDE"] is False
                constants["WIDE"] = wide
            call._replace(constants=constants).launch(x_adv)
        results.append((x_adv, feed))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype, classes", [(torch.float32, 4097), (torch.float64, 2100)])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("kind", LossKind)
def test_losses_of_long_rows(kind, targeted, dtype, classes, device):
    g = torch.Generator().manual_seed(3)
    z, t = (torch.randn(2, 3, classes, generator=g) * 4).to(device, dtype)
    y = torch.randint(0, classes, (3,), generator=g).to(device)
    soft, kl = kind in (LossKind.kl, LossKind.mixture), kind == LossKind.kl
    goals = (y + 7) % classes if kind == LossKind.dlr and targeted else None
    options = (2.0, 1.0, 0.3, 0.5)
    loss, d = torch.empty(3, dtype=dtype, device=device), torch.empty_like(z)
    dtarget = torch.empty_like(z) if kl else None
    OPS.logit_loss(
        z, t if soft else None, None if kl else y, goals, int(kind), targeted, *options,
        loss, d, dtarget)  # fmt: skip
    exact = reference.logit_loss(
        z.double(), t.double() if soft else None, kind.name, y, goals, targeted, *options
    )
    for out, wanted in zip((loss, d, dtarget), exact, strict=True):
        if out is not None:
            assert_close(out, wanted)


@pytest.mark.parametrize("floor", [0.0, 1e-5])
@pytest.mark.parametrize("classes", [10, 5000])
def test_distillation_is_reduced_in_a_fixed_order(classes, floor, device):
    g = torch.Generator().manual_seed(4)
    s, t = torch.randn(2, 37, classes, generator=g).to(device)
    results = []
    for _ in range(2):
        loss, ds, dt = torch.empty((), device=device), torch.empty_like(s), torch.empty_like(t)
        partials = torch.empty(37, dtype=torch.float64, device=device)
        OPS.distill_kl(s, t, 2.0, floor, 1.0, loss, ds, dt, partials, None)
        results.append((loss, ds, dt))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    rows, *gradients = reference.distill_kl(s.double(), t.double(), 2.0, floor)
    for out, wanted in zip(results[0], (rows.sum(), *gradients), strict=True):
        assert_close(out, wanted)


@pytest.mark.parametrize("classes", [10, 5000])
@pytest.mark.parametrize("kind", [k for k in LossKind if k != LossKind.kl])
def test_a_label_outside_makes_its_row_nan(kind, classes, device):
    z = torch.randn(4, classes, device=device)
    y = torch.zeros(4, dtype=torch.int64, device=device)
    loss, d = torch.empty(4, device=device), torch.empty_like(z)
    target = z if kind == LossKind.mixture else None
    calls = triton_kernels.loss_calls(
        z, target, y, None, int(kind), False, 1.0, 60.0, 0.5, 1.0, loss, d, None
    )
    y[1], y[2] = classes, -1  # the operator looks at labels on the CPU, the kernel does not
    for call in calls:
        call.launch(z)
    assert loss.isnan().tolist() == [False, True, True, False]
    assert d.isnan().all(1).tolist() == [False, True, True, False]
    assert d.isnan().any(1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("norm", Norm)
def test_opcheck_images(norm, device):
    x = torch.rand(3, 3, 6, 5, device=device)
    grad, feed, radius = torch.randn_like(x), torch.empty_like(x), torch.rand(3, device=device)
    mean, std = (t.to(device) for t in FEED)
    bound = torch.full((3,), 0.03, device=device)
    box = (int(norm), 0.0, 1.0, 0.2)
    opcheck(OPS.pgd_step_.Scalar, (x.clone(), grad, x, 0.03, 0.01, *box, None, None, None))
    opcheck(OPS.pgd_step_.Tensor, (x.clone(), grad, x, bound, bound[:1], *box, feed, mean, std))
    for kind in (0, 1):
        rest = (int(norm), kind, 0.001, True, 0.0, 1.0)
        opcheck(OPS.random_start_.Scalar, (x.clone(), x, grad, radius, 0.1, *rest))
        opcheck(OPS.random_start_.Tensor, (x.clone(), x, grad, radius, bound, *rest))


def test_opcheck_rows(device):
    z, t = torch.randn(2, 4, 10, device=device)
    y, loss = torch.arange(4, device=device), torch.empty(4, device=device)
    args = (False, 1.0, 0.0, 0.5, 1.0, loss, torch.empty_like(z))
    opcheck(OPS.logit_loss, (z, t, None, None, 0, *args, torch.empty_like(t)))
    opcheck(OPS.logit_loss, (z, None, y, None, 4, *args, None))
    sums = torch.empty(4, dtype=torch.float64, device=device)
    loss = torch.empty((), device=device)
    opcheck(OPS.distill_kl, (z, t, 1.0, 1e-5, 1.0, loss, torch.empty_like(z), None, sums, None))


def test_the_boundary_refuses_what_python_would(device):
    x = torch.rand(2, 3, 4, 4, device=device)
    box = (0.03, 0.01, 0, 0.0, 1.0, 0.2, None, None, None)
    last = x.contiguous(memory_format=torch.channels_last)
    step = OPS.pgd_step_.Scalar
    for grad, words in ((x[:1], "shape"), (last, "memory layout")):
        with pytest.raises(RuntimeError, match=f"grad must have x_adv's {words}"):
            step(x, grad, x, *box)
    with pytest.raises(RuntimeError, match="x must have x_adv's dtype"):
        step(x, x, x.double(), *box)
    with pytest.raises(RuntimeError, match="mean and std go together"):
        step(x, x, x, *box[:-2], torch.zeros(3, device=device), None)


def test_more_than_2_to_the_31_elements(device):
    if device == "cpu":
        pytest.skip("the interpreter would take hours")
    total = 2**31 + 4096
    if torch.cuda.mem_get_info()[0] < 7 * total:
        pytest.skip("the device has too little free memory")
    x = torch.full((total // 64, 64), 0.5, device=device, dtype=torch.bfloat16)
    x_adv, grad = x.clone(), x.clone()
    stepped((x_adv, grad, x), 0.25, 0.125, "Linf")
    assert x_adv[:2].unique().tolist() == x_adv[-2:].unique().tolist() == [0.625]


def test_replay_of_a_graph(device):
    if device == "cpu":
        pytest.skip("the CPU has no graphs")
    for norm in NORMS:
        case = StepCase(norm, torch.float32, "contiguous", LARGE)
        tensors = step_inputs(case, device)
        wanted = stepped([t.clone() for t in tensors], *NORMS[norm], norm)
        kept, graph = tensors[0].clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            stepped(tensors, *NORMS[norm], norm)
        tensors[0].copy_(kept)
        graph.replay()
        assert torch.equal(tensors[0], wanted)
