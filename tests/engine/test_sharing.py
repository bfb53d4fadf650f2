"""Models that are copied, dropped, attacked twice at once, or by several threads."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import sys
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F

import fastard
from fastard import ops
from fastard.engine import Inference, PairGradient, Program, compiled
from tests.engine.networks import Tiny, images, network, tiny
from tests.engine.oracle import agrees, answers, autograd, error, reason


@pytest.fixture
def case():
    return tiny()


def test_copies_of_an_attacked_model(case):
    model, x, d = case
    fastard.pgd_kl(model, x, d)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)),
                  torch.load(file, weights_only=False)):  # fmt: skip
        assert other not in compiled._PLANS
        assert [set(m.__dict__) for m in other.modules()] == [
            set(m.__dict__) for m in network(Tiny, 12).modules()
        ]
        with torch.no_grad():
            other.fc.weight.mul_(3)
        agrees(other, x, d)
    agrees(model, x, d)


@pytest.mark.parametrize("leaf", [False, True], ids=["traced", "with a leaf"])
def test_an_attacked_model_is_freed_with_its_plans(leaf):
    model, x, d = tiny()
    if leaf:
        model.stem.register_forward_hook(lambda module, given, made: made)
    fastard.pgd_kl(model, x, d)
    answers(Program(model), x, d)
    assert model in compiled._PLANS
    before, held = len(compiled._PLANS), [weakref.ref(m) for m in model.modules()]
    del model
    # fx's graph modules go in a first pass, the modules that they called in a second.
    gc.collect(), gc.collect()
    assert [ref() for ref in held] == [None] * len(held)
    assert len(compiled._PLANS) < before


def test_a_gradient_that_nobody_asks_for_is_not_kept(case):
    """Records live as long as their program."""
    model, x, _ = case
    program = Program(model)
    program.forward(x)
    record = weakref.ref(program._single[0])
    del program
    gc.collect()
    assert record() is None


def test_programs_of_one_model_may_alternate(case):
    model, x, d = case
    first, second = Program(model), Program(model)
    y, e = x.flip(0) * 0.5, d * 2
    wanted = [autograd(model, x, d), autograd(model, y, e)]
    got = [first.forward(x), second.forward(y)]
    gradients = [first.vjp(d), second.vjp(e)]
    for k in range(2):
        assert error(got[k], wanted[k][0]).max() < 1e-5
        assert error(gradients[k], wanted[k][1]).max() < 1e-5
    with first.running(x), second.running(y):
        got = [first.forward_feed(first.prepared(x)), second.forward_feed(second.prepared(y))]
        assert error(second.vjp(e), wanted[1][1]).max() < 1e-5
        assert error(first.vjp(d), wanted[0][1]).max() < 1e-5


def test_one_model_as_student_and_teacher(case):
    model, x, _ = case
    leaf = (x + 0.01).requires_grad_()
    student, teacher = model(leaf), model(x)
    pair = PairGradient(Program(model), Program(model))
    loss, to_student, to_teacher = pair(leaf.detach(), x)
    wanted = F.kl_div(student.log_softmax(1), teacher.log_softmax(1).detach(), log_target=True,
                      reduction="none").sum(1)  # fmt: skip
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-3, atol=1e-6)
    (exact,) = torch.autograd.grad(wanted.sum(), leaf)
    assert error(to_student, exact).max() < 1e-4 and torch.isfinite(to_teacher).all()
    # Their divergence is 0 everywhere, and so is what there is to gain.
    x_adv, info = fastard.pgd_kl_pair(model, model, x, return_info=True)
    assert (x_adv - x).abs().max() <= 8 / 255 + 1e-6 and info.loss.abs().max() < 1e-4


def test_a_teacher_follows_its_model(case):
    model, x, _ = case
    live, frozen = Inference(model), Inference(model, frozen=True)
    before = live(x)
    assert error(before, model(x).detach()).max() < 1e-5 and torch.equal(frozen(x), before)
    with torch.no_grad():
        model.fc.weight.mul_(2)
    assert error(live(x), model(x).detach()).max() < 1e-5
    assert torch.equal(frozen(x), before)


@pytest.fixture
def hasty():
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def together(*works, rounds=1):
    """Runs the works at the same time; returns what they raised."""
    raised = []

    def run(work):
        try:
            for _ in range(rounds):
                work()
        except Exception as failure:  # reported by the caller's assertion
            raised.append(failure)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


OPTIONS = {"norm": "L2", "eps": 3.0, "alpha": 1.0, "steps": 3, "random_start": False}


def test_threads_that_attack_one_model(case, hasty):
    model, x, d = case
    wanted = {k: fastard.pgd_kl(model, x[k:], d[k:], **OPTIONS) for k in range(3)}

    def work(k):
        assert torch.equal(fastard.pgd_kl(model, x[k:], d[k:], **OPTIONS), wanted[k])

    assert together(*(lambda k=k: work(k) for k in range(3)), rounds=10) == []


def test_threads_that_share_one_attack(case, hasty):
    model, x, d = case
    attack = fastard.PGD(model, **OPTIONS)
    wanted = {k: attack(x[k:], d[k:]) for k in range(3)}

    def work(k):
        assert torch.equal(attack(x[k:], d[k:]), wanted[k])

    assert together(*(lambda k=k: work(k) for k in range(3)), rounds=10) == []


def test_a_model_is_traced_while_other_threads_train(hasty):
    """Tracing patches modules for the whole process; other threads must not notice."""
    cases = [tiny() for _ in range(4)]
    own, (x, d) = network(Tiny, 12), images(12, count=8)
    wanted = autograd(own, x, d)[0]

    def attack():
        model, images_, seed = cases.pop()
        program = Program(model)
        answers(program, images_, seed)
        assert program.made.plan is not None, reason(program)

    def train():
        logits = own(x)
        assert torch.equal(logits, wanted)
        ops.distill_kl(logits, d).backward()
        own.zero_grad()

    done = threading.Event()

    def until_done():
        while not done.is_set():
            train()

    def attacks():
        try:
            for _ in range(4):
                attack()
        finally:
            done.set()

    assert together(attacks, until_done) == []
    assert cases == []
