"""The CPU kernels of every instruction set this CPU has, each in a process of its own."""

from __future__ import annotations

import pytest
import torch

from fastard import kinds, ops, reference, reference_apgd, reference_noise
from tests.ops.cases import NORMS, StepCase, assert_close, native_only, step_inputs
from tests.ops.forcing import forced, isas
from tests.ops.test_apgd_ops import drawn, stepped

pytestmark = native_only

CLASSES = [10, 17, 1000]
# Wider than any of the three vector lengths, and of a length that fills none of them.
SHAPE = (3, 3, 33, 31)


def row_inputs(classes: int):
    g = torch.Generator().manual_seed(classes)
    z, t = torch.randn(2, 5, classes, generator=g) * 3
    return z, t, torch.randint(0, classes, (5,), generator=g)


def check_steps() -> torch.Tensor:
    for norm, (eps, alpha) in NORMS.items():
        x_adv, grad, x = step_inputs(StepCase(norm, torch.float32, "contiguous", SHAPE))
        exact = reference.pgd_step(x_adv.double(), grad.double(), x.double(), eps, alpha, norm)
        assert_close(ops.pgd_step_(x_adv, grad, x, eps, alpha, norm), exact)
    x_adv, grad, x = step_inputs(StepCase("Linf", torch.float32, "contiguous", SHAPE))
    wanted = reference.pgd_step(x_adv, grad, x, *NORMS["Linf"], "Linf")
    assert torch.equal(ops.pgd_step_(x_adv, grad, x, *NORMS["Linf"], "Linf"), wanted)
    return x_adv


def check_starts() -> None:
    for norm, (eps, _) in NORMS.items():
        for kind in ("uniform", "gaussian"):
            _, noise, x = step_inputs(StepCase(norm, torch.float32, "contiguous", SHAPE))
            radius = torch.linspace(0, 1, len(x))
            exact = reference.random_start(
                x.double(), noise.double(), eps, kind, norm, radius.double()
            )
            out = ops.random_start_(torch.empty_like(x), x, noise, eps, kind, norm, radius=radius)
            assert_close(out, exact)


def check_rows() -> None:
    for classes in CLASSES:
        z, t, y = row_inputs(classes)
        for kind in kinds.LossKind:
            soft = kind in (kinds.LossKind.kl, kinds.LossKind.mixture)
            labels = y if kind == kinds.LossKind.mixture else None
            got = ops.logit_loss(z, t if soft else y, kind, labels=labels)
            exact = reference.logit_loss(z.double(), t.double() if soft else None, kind.name, y)
            for out, wanted in zip(got, exact[:2], strict=True):
                assert_close(out, wanted)
        student, teacher = z.clone().requires_grad_(), t.clone().requires_grad_()
        loss = ops.distill_kl(student, teacher, 2.0, "sum", log_floor=1e-5)
        loss.backward()
        rows, *gradients = reference.distill_kl(z.double(), t.double(), 2.0, 1e-5)
        for out, wanted in zip((loss.detach(), student.grad, teacher.grad),
                               (rows.sum(), *gradients), strict=True):  # fmt: skip
            assert_close(out, wanted)


def check_apgd() -> None:
    for norm in NORMS:
        v, old, grad, x, eps, size, share = drawn(norm, shape=SHAPE)
        exact = reference_apgd.apgd_step(v, old, grad, x, eps, size, norm, 0.75, 0.0, 1.0, share)
        assert_close(stepped(norm, v, old, grad, x, eps, size, share), exact.double())
    ids, key = torch.tensor([5, 2**32 - 1]), (2**63 + 1, 9, 4)
    uniform = reference_noise.counter_noise(ids, 1031, *key, False)
    assert torch.equal(ops.counter_noise(ids, 1031, *key), uniform)
    normal = reference_noise.counter_noise(ids, 1031, *key, True)
    torch.testing.assert_close(
        ops.counter_noise(ids, 1031, *key, normal=True), normal, rtol=5e-7, atol=5e-7
    )


# Prints the instruction set and a digest of the Linf step's bits.
EVERYTHING = """
import hashlib
from fastard import native
from tests.ops import test_isa as t

t.check_starts(), t.check_rows(), t.check_apgd()
print(native.module.cpu_isa(), hashlib.sha256(t.check_steps().numpy().tobytes()).hexdigest())
"""


@pytest.mark.parametrize("isa", isas())
def test_every_op_matches_reference(isa):
    assert forced(isa, EVERYTHING)[0] == isa


def test_linf_is_bitwise_equal_across_instruction_sets():
    digests = {isa: forced(isa, EVERYTHING)[1] for isa in isas()}
    assert len(set(digests.values())) == 1, digests


def test_the_widest_is_the_default():
    assert forced("", EVERYTHING)[0] == isas()[-1]
