"""Whole attacks beside the published loops, `torch.compile` and the libraries, each from one seed.

Every run follows a change of the weights, so that their renewal counts. What is asserted first: x'
stays in ball and box, and its loss under the fp32 network comes as high as the published loop's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastard
from fastard.engine import Program
from fastard.engine.cost import cost
from fastard.engine.plan import Plan
from fastard.engine.precision import resolve

from . import attack_rivals, gpu_attack_floor, networks, published, rivals
from .attack_floor import floor
from .case import Case
from .contest import FLOOR, Contest, Contestant, first_line, held
from .record import OURS, Agreement, Line
from .rivals import Absent

PUBLISHED, COMPILE = "published loop", "torch.compile"
# The published loop's seed gives the same start; the libraries draw theirs otherwise.
MOST_SHORT = {"fp32": 0.02, "tf32": 0.02, "bf16": 0.05, "fp16": 0.05}
# The first gradients of TRADES, whose target is the network's own output, are rounding.
OTHER_START = OTHER_SIGNS = 0.1
BOUNDS = {"Linf": (8 / 255, 2 / 255), "L2": (0.5, 0.1), "L1": (12.0, 3.0)}
WHAT = "how far the loss reached falls short of the published loop's, relative to that,"
Loop = Callable[[], Tensor]


@dataclass
class Field:
    """What an attack is about: networks, images, labels, teacher logits, on the case's device."""

    net: nn.Module
    x: Tensor
    y: Tensor
    logits: Tensor
    teacher: nn.Module | None

    def __post_init__(self) -> None:
        self._statistics = [b.clone() for b in self.net.buffers()]

    def restore(self) -> None:
        """Undoes what attacks in train mode do to BN statistics."""
        for buffer, kept in zip(self.net.buffers(), self._statistics, strict=True):
            buffer.copy_(kept)


def prepared(case: Case) -> Field:
    """The case's networks and batch, drawn from one seed."""
    assert case.model is not None and case.batch is not None
    classes = case.settings.get("classes", 10)
    shape = networks.image_shape(case.model, case.batch)
    if side := case.settings.get("side"):
        shape = (*shape[:2], side, side)
    net = networks.build(case.model, classes).to(case.device)
    teacher = case.settings.get("teacher")
    pair = networks.build(teacher, classes, 1).to(case.device).eval() if teacher else None
    torch.manual_seed(0)
    x = torch.rand(shape).to(case.device)
    y = torch.randint(classes, (case.batch,)).to(case.device)
    return Field(net, x, y, (torch.randn(case.batch, classes) * 2).to(case.device), pair)


def loops(case: Case, f: Field) -> tuple[Loop, Loop]:
    """fastard's attack and the published one, as the case's `loss` names them."""
    steps, norm = case.steps or 10, case.norm or "Linf"
    eps, alpha = BOUNDS[norm]
    size: dict[str, Any] = {"eps": eps, "alpha": alpha, "steps": steps}
    ours = {**size, "precision": case.precision, "noise_device": "cpu"}
    kind = case.loss
    if kind == "kl":
        return (lambda: fastard.pgd_kl(f.net, f.x, f.logits, **ours),
                lambda: published.rslad(f.net, f.logits, f.x, **size))  # fmt: skip
    if kind == "pair":
        assert f.teacher is not None
        teacher = f.teacher
        return (lambda: fastard.pgd_kl_pair(f.net, teacher, f.x, **ours),
                lambda: published.adaad(f.net, teacher, f.x, **size))  # fmt: skip
    if kind == "trades":

        def trades() -> Tensor:
            clean = fastard.engine.Inference(f.net, case.precision)(f.x)
            return fastard.pgd_kl(f.net, f.x, clean, **ours)

        return trades, lambda: published.trades(f.net, f.x, **size)
    if kind == "iad":
        return (lambda: fastard.pgd_ce(f.net, f.x, f.y, mode="train", clip_start=False, **ours),
                lambda: published.iad(f.net, f.x, f.y, **size))  # fmt: skip
    attack = {"Linf": published.madry, "L2": eager_l2, "L1": eager_l1}[norm]
    return (lambda: fastard.pgd(f.net, f.x, f.y, norm=norm, **ours),
            lambda: attack(f.net, f.x, f.y, start(f.x, norm, eps), **size))  # fmt: skip


def start(x: Tensor, norm: str, eps: float) -> Tensor:
    """A uniform start, clipped; beyond Linf a Gaussian direction, as the codes of those norms."""
    if norm == "Linf":
        noise = torch.rand(x.shape) * 2 * eps - eps
        return torch.clamp(x + noise.to(x.device), 0.0, 1.0)
    noise = torch.randn(x.shape).to(x.device)
    length = noise.flatten(1).norm(2 if norm == "L2" else 1, dim=1).view(-1, *[1] * (x.dim() - 1))
    return torch.clamp(x + noise / length * eps, 0.0, 1.0)


def _eager(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def attack(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, eps: float, alpha: float,
               steps: int) -> Tensor:  # fmt: skip
        model.eval()
        for _ in range(steps):
            x_adv = x_adv.detach().requires_grad_()
            with torch.enable_grad():
                loss = F.cross_entropy(model(x_adv), y, reduction="sum")
            grad = torch.autograd.grad(loss, [x_adv])[0]
            x_adv = step(x_adv.detach(), grad, x, eps, alpha)
        model.train()
        return x_adv.detach()

    return attack


eager_l2, eager_l1 = _eager(published.l2_step), _eager(published.l1_step)


def reached(case: Case, f: Field, x_adv: Tensor) -> float:
    """The loss that x' reaches under the fp32 network in eval mode."""
    training = f.net.training
    f.restore()
    f.net.eval()
    try:
        with torch.no_grad():
            z = f.net(x_adv).double()
            if case.loss in ("ce", "iad"):
                return float(F.cross_entropy(z, f.y))
            if case.loss == "pair":
                assert f.teacher is not None
                p = f.teacher(x_adv).double().softmax(1)
            else:
                p = (f.logits if case.loss == "kl" else f.net(f.x)).double().softmax(1)
            return float(F.kl_div(z.log_softmax(1), p, reduction="batchmean"))
    finally:
        f.net.train(training)


def judge(case: Case, f: Field, wanted: float) -> Callable[[str, Tensor], Agreement]:
    norm = case.norm or "Linf"
    eps = BOUNDS[norm][0]

    def verdict(who: str, x_adv: Tensor) -> Agreement:
        x_adv = x_adv.detach().to(f.x.dtype)
        apart = (x_adv - f.x).flatten(1)
        length = {"Linf": lambda: apart.abs().amax(1), "L2": lambda: apart.norm(dim=1),
                  "L1": lambda: apart.abs().sum(1)}[norm]()  # fmt: skip
        outside = max(float(length.max()) / eps - 1, float(-x_adv.min()), float(x_adv.max()) - 1)
        if outside > 1e-3:
            return Agreement("how far x' leaves the ball or the box", outside, 1e-3, False)
        most = MOST_SHORT[case.precision or "fp32"]
        if case.loss == "trades":
            most = max(most, OTHER_SIGNS)
        if who in rivals.RIVALS:
            most = max(most, OTHER_START)
        short = 1 - reached(case, f, x_adv) / wanted
        # A NaN stays one.
        return Agreement(WHAT, max(short, 0.0), most, short <= most)

    return verdict


def contest(case: Case) -> Contest:
    """fastard's attack, the published loop and the case's rivals."""
    f = prepared(case)
    ours, theirs = loops(case, f)
    weight = next(f.net.parameters()).data

    def before() -> None:
        f.restore()
        torch.manual_seed(1)
        numpy.random.seed(1)
        weight.mul_(1.0)

    runs = resolve(case.precision, case.device)
    other = None if runs.name == case.precision else runs.reason
    found = {OURS: Contestant(ours, fastard.__version__, other),
             PUBLISHED: Contestant(theirs, variant=_said(case))}  # fmt: skip
    absent: dict[str, tuple[str, str]] = {}
    for name in case.rivals:
        try:
            if name == COMPILE:
                found[name] = compiled(case, f)
            else:
                found[name] = library(name, case, f)
        except Absent as error:
            absent[name] = ("unavailable", str(error))
        except Exception as error:  # whatever a library of others raises when it is set up
            absent[name] = ("failed", first_line(error))
    before()
    try:
        wanted = reached(case, f, theirs())
    except ModuleNotFoundError as error:
        # Without the published loop there is no oracle.
        raise Absent(f"the {PUBLISHED} needs {error.name}: {rivals.INSTALL}") from error
    made = Contest(found, judge(case, f, wanted), absent, before=before)
    if case.settings.get("floor", case.loss == "kl"):
        _with_floor(made, case, f)
    return made


def _said(case: Case) -> str:
    precision = "TF32 convolutions, torch's default" if case.device == "cuda" else "fp32"
    names = {"kl": "RSLAD", "trades": "TRADES", "pair": "AdaAD", "iad": "IAD"}
    return f"{names.get(case.loss or '', 'PGD')}'s, re-implemented; {precision}"


def library(name: str, case: Case, f: Field) -> Contestant:
    """A library's attack on a copy of the network, which no other loop puts into train mode."""
    norm = case.norm or "Linf"
    eps, alpha = BOUNDS[norm]
    model = copy.deepcopy(f.net).eval()
    setting = rivals.Setting(model, f.x, f.y, norm, eps, alpha, case.steps or 10)
    version = rivals.version(rivals.RIVALS[name].package)
    return Contestant(rivals.made(name, setting), version)


def compiled(case: Case, f: Field) -> Contestant:
    """The published loop around the fastest `torch.compile` of the student."""
    precision = case.precision if case.precision in ("bf16",) else "fp32"
    modes = case.settings.get("modes", ("default", "max-autotune"))
    forms = case.settings.get("forms", tuple(attack_rivals.LAYOUTS))
    tried = attack_rivals.fastest(f.net, f.x, f.logits, modes, (precision,), forms)
    if not tried.loops:
        raise Absent("no mode of torch.compile ran here")
    ((name, run),) = tried.loops.items()
    steps = case.steps or 10
    variant = f"{name.removeprefix(f'compile {precision} ')}, the fastest of {len(tried.trials)}"
    return Contestant(lambda: run(steps), torch.__version__, variant)


def plan_of(net: nn.Module, x: Tensor, precision: str | None) -> Plan:
    program = Program(net, precision)
    with program.running(x):
        plan = program.plan
    if plan is None:
        raise Absent(f"the network has no plan: {program.made}")
    return plan


def _with_floor(made: Contest, case: Case, f: Field) -> None:
    steps, precision = case.steps or 10, case.precision or "fp32"
    try:
        plan = plan_of(f.net, f.x, precision)
        made.flops = round(cost(plan).flops * len(f.x) * steps)
        made.bytes = round(cost(plan).bytes * len(f.x) * steps)
        if case.device == "cuda":
            made.floor = gpu_attack_floor.replays(f.net, f.x, steps, [precision])[
                f"{FLOOR} {precision}"]  # fmt: skip
        else:
            once = floor(plan, f.net, f.x)
            made.floor = lambda: [once() for _ in range(steps)]
    except Exception as error:  # the floor is beside the point of a case
        made.absent[FLOOR] = ("failed", first_line(error))


def measure(case: Case) -> Iterator[Line]:
    """The lines of an attack case."""
    yield from held(case, contest(case))
