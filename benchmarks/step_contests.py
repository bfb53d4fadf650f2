"""Whole training steps: RSLAD's and AdaAD's beside the published scripts', every method's beside
itself on eager autograd. What is asserted first: one step from equal state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import fastard
from fastard import methods
from fastard.data import Images
from fastard.methods.base import Method
from fastard.methods.registry import METHODS

from . import networks, published_steps, step, step_agreement
from .case import Case
from .contest import Contest, Contestant, held
from .record import OURS, Agreement, Line, Result

PUBLISHED, EAGER = "published script's step", "eager autograd"
LOSS, IMAGES = 0.02, 512


def against_published(case: Case) -> Iterator[Line]:
    """fastard's step in the faster layout beside the published one; where our time goes."""
    assert case.model is not None and case.batch is not None
    name, low = case.settings["method"], case.precision == "bf16"
    net = networks.build(case.model).to(case.device)
    teacher = networks.build(case.settings["teacher"]).to(case.device).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (IMAGES,), generator=generator)
    held_images = Images(pixels.to(case.device), labels.to(case.device), "crop-flip")
    x, y = held_images.float(slice(0, case.batch)), held_images.y[: case.batch]
    published = step.PUBLISHED[name]
    try:
        agreed = step_agreement.agreement(name, net, teacher, published, x, y)
    except RuntimeError as error:
        yield case.line(OURS, "disagrees", reason=str(error))
        return
    arm, what = ("engine", "loss") if case.device == "cuda" else ("eager", "update")
    most = step_agreement.LOSS if what == "loss" else step_agreement.UPDATE
    off = agreed[arm][what]
    verdict = Agreement(f"the {what} of one step, relative to the published step's,", off, most,
                        off <= most)  # fmt: skip
    theirs = copy.deepcopy(net)
    optimizer = step.sgd(theirs)
    loader: Iterator[Any] = step.forever(held_images, case.batch)
    if case.device == "cpu":
        loader = published_steps.batches(pixels, labels, case.batch)
    # The faster one, as `make bench-step` finds it.
    plain = case.device == "cpu" and case.model == "resnet18" and not low
    form = "nchw" if plain else "channels_last"
    built, ours = step.ours(
        step.Case(name, case.model), net, teacher, held_images, low, form, case.batch
    )
    found = {
        OURS: Contestant(ours, fastard.__version__, form),
        PUBLISHED: Contestant(lambda: published(theirs, teacher, optimizer, *next(loader))),
    }
    for line in held(case, Contest(found, lambda who, result: verdict)):
        if line.who == OURS and line.status == "measured" and case.device == "cpu":
            line = replace(line, breakdown=_parts(built, ours))
        yield line


def _parts(method: Method, run: Callable[[], Any]) -> dict[str, float]:
    found = step.parts(method, run, 2)
    return {name: value for name, value in found.items() if name != "step"} | {
        "rest": step.step_parts.rest(found)
    }


def against_eager(case: Case) -> Iterator[Line]:
    """A method's step with the engine's attacks and with eager autograd's."""
    assert case.model is not None and case.batch is not None
    name = case.settings["method"]
    torch.manual_seed(0)
    x = torch.rand(networks.image_shape(case.model, case.batch)).to(case.device)
    y = torch.randint(10, (case.batch,)).to(case.device)
    found: dict[str, Contestant] = {}
    for who, engine in ((OURS, True), (EAGER, False)):
        method = build(case, engine)
        if method is None:
            continue
        optimizer = torch.optim.SGD(method.trainable_parameters(), lr=1e-4, momentum=0.9)
        found[who] = Contestant(_run(method, optimizer, x, y, case.precision == "bf16"),
                                fastard.__version__)  # fmt: skip
    wanted: dict[str, float] = {}

    def judge(who: str, result: Tensor) -> Agreement:
        # The first of them is fastard's: its own loss is held against the eager step's.
        wanted.setdefault(EAGER, _first_loss(case, x, y))
        gap = abs(float(result) - wanted[EAGER]) / max(abs(wanted[EAGER]), 1e-6)
        return Agreement("the first step's loss, relative to eager autograd's,", gap, LOSS,
                         gap <= LOSS)  # fmt: skip

    contest = Contest(found, judge, before=lambda: torch.manual_seed(1))
    if EAGER not in found:
        contest.absent[EAGER] = ("skipped", f"{name} takes the same passes without the engine")
    rows: list[Result] = list(held(case, contest))
    yield from rows


def build(case: Case, engine: bool) -> Method | None:
    """The method around fresh networks; None for eager steps of one that attacks nothing."""
    name, classes = case.settings["method"], 10
    kind = METHODS[name]
    options: dict[str, Any] = {}
    if "engine" in kind.option_names():
        options["engine"] = engine
    elif not engine:
        return None
    if "noise_device" in kind.option_names():
        options["noise_device"] = "cpu"
    model = case.model or "small_cnn"
    count = kind.least_teachers

    def fresh(outputs: int) -> nn.Module:
        return networks.build(model, outputs)

    student = kind.make_student(fresh, classes, count, options).to(case.device)
    teachers = [networks.build(model, classes, 1 + k).to(case.device).eval() for k in range(count)]
    return methods.build(name, student.train(), teachers, **options)


def _run(method: Method, optimizer: Any, x: Tensor, y: Tensor, low: bool) -> Callable[[], Tensor]:
    """The loop of a user of fastard."""

    def run() -> Tensor:
        method.student.train()
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=low):
            loss, _ = method(x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        method.after_backward()
        optimizer.step()
        return loss.detach()

    return run


def _first_loss(case: Case, x: Tensor, y: Tensor) -> float:
    method = build(case, False) or build(case, True)
    assert method is not None
    optimizer = torch.optim.SGD(method.trainable_parameters(), lr=1e-4, momentum=0.9)
    torch.manual_seed(1)
    return float(_run(method, optimizer, x, y, case.precision == "bf16")())
