"""KD and FunMatch: distillation without an attack."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastard import losses, methods

from .formulas import assert_formula, kl, logits
from .parity import Case, assert_same_training, batches, teacher, twins


@pytest.mark.parametrize("options", [{}, {"teacher_weight": 0.5, "temperature": 1.0}])
def test_kd_equals_a_loop(options):
    alpha, t = options.get("teacher_weight", 0.9), options.get("temperature", 4.0)

    def make(dtype):
        (student, twin), net = twins(dtype), teacher(dtype)

        def by_hand(x, y, epoch):
            z = twin(x)
            p = F.softmax(net(x) / t, 1).detach()
            soft = F.kl_div(F.log_softmax(z / t, 1), p, reduction="batchmean")
            return x, (1 - alpha) * F.cross_entropy(z, y) + alpha * t * t * soft

        return Case(methods.build("kd", student, net, **options), by_hand, [(student, twin)])

    assert_same_training(make)


@pytest.mark.parametrize("t", [1.0, 5.0])
def test_funmatch_is_the_sum_over_teachers(t):
    answers = [logits(3), logits(4)]
    assert_formula(
        lambda z: losses.funmatch(z, answers, t),
        lambda z: sum(t * t * kl(z / t, answer / t).mean() for answer in answers),
        0,
        rtol=1e-9,
    )
    with pytest.raises(ValueError, match="at least one teacher's, but is empty"):
        losses.funmatch(logits(0), [])


@pytest.mark.parametrize("mixup", [True, False])
def test_funmatch_equals_a_loop_and_never_reads_labels(mixup):
    def make(dtype):
        (student, twin), nets = twins(dtype), [teacher(dtype), teacher(dtype, seed=5)]

        def by_hand(x, y, epoch):
            view = x
            if mixup:
                u = torch.rand(()).item()
                a = max(u, 1 - u)
                view = a * x + (1 - a) * torch.cat([x[-1:], x[:-1]])
            q = twin(view).log_softmax(1)
            loss = sum(
                F.kl_div(q, net(view).softmax(1).detach(), reduction="batchmean") for net in nets
            )
            return view, loss

        method = methods.build("funmatch", student, nets, mixup=mixup)
        return Case(method, by_hand, [(student, twin)])

    assert_same_training(make)


def test_every_network_sees_the_same_view():
    seen = []
    student, _ = twins(torch.float64)
    nets = [teacher(torch.float64), teacher(torch.float64, seed=5)]
    for net in (student, *nets):
        net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    generator = torch.Generator().manual_seed(4)
    method = methods.build("funmatch", student, nets, generator=generator)
    x, y = batches(torch.float64)[0]
    method(x, y)
    assert len(seen) == 3
    assert all(torch.equal(view, seen[0]) for view in seen)
    assert not torch.equal(seen[0], x)
    with pytest.raises(ValueError, match="option generator must be a torch.Generator"):
        methods.build("funmatch", student, nets, generator=1)


def test_selected_by_clean_accuracy():
    for name in ("kd", "funmatch"):
        assert methods.build(name, nn.Identity(), nn.Identity()).selects_on == "clean"
