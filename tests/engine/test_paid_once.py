"""What is paid once a network and what once an attack, counted; the set-up's time, generously."""

from __future__ import annotations

import time
from collections import Counter

import pytest
import torch

import fastard
from fastard import ops
from fastard.engine import Inference, compiled
from tests.api.models import batch, small_net


@pytest.fixture
def counted(monkeypatch) -> Counter:
    """How often plans are made and weights renewed; making one renews them once for its check."""
    found: Counter = Counter()

    def counting(module, name):
        own = getattr(module, name)

        def call(*arguments, **options):
            found[name] += 1
            return own(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    counting(compiled, "make")
    counting(ops, "fold_bn_")
    return found


def test_a_plan_is_made_once_for_every_batch_size_and_attack(counted):
    net, (x, y, logits) = small_net(), batch(8)
    fastard.pgd_kl(net, x, logits, steps=1)
    assert counted["make"] == 1
    fastard.pgd_kl(net, x, logits, steps=1)
    fastard.pgd_kl(net, x[:3], logits[:3], steps=2)
    fastard.pgd_ce(net, x[:1], y[:1], steps=1)
    fastard.PGD(net, loss="kl")(x[:5], logits[:5])
    Inference(net)(x)
    assert counted["make"] == 1


@pytest.mark.parametrize("steps", [1, 4])
def test_the_weights_are_renewed_by_one_launch_an_attack(counted, steps):
    net, (x, _, logits) = small_net(), batch(4)
    fastard.pgd_kl(net, x, logits, steps=steps)
    counted.clear()
    for attacks in (1, 2):
        fastard.pgd_kl(net, x, logits, steps=steps, n_restarts=2)
        assert counted == {"fold_bn_": attacks}


def test_a_pair_renews_each_network_once(counted):
    student, teacher, (x, _, _) = small_net(), small_net(seed=1), batch(4)
    fastard.pgd_kl_pair(student, teacher, x, steps=2)
    assert counted["make"] == 2
    counted.clear()
    fastard.pgd_kl_pair(student, teacher, x, steps=2)
    assert counted == {"fold_bn_": 2}


def test_a_frozen_teacher_is_renewed_never_again(counted):
    teacher, (x, _, _) = small_net(seed=1), batch(4)
    ask = Inference(teacher, frozen=True)
    ask(x)
    counted.clear()
    ask(x)
    ask(x[:2])
    assert counted == {}


def test_set_up_takes_little_processor_time():
    """Of the processor, not of the clock, so that a busy machine changes nothing."""
    net, x = fastard.models.build("resnet18"), torch.rand(2, 3, 32, 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        begun = time.process_time()
        fastard.pgd_kl(net, x, torch.randn(2, 10), steps=1)
        assert time.process_time() - begun <= 3.0
    finally:
        torch.set_num_threads(threads)
