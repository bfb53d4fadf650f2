"""Every case of `fastard bench`, declared; a suite is those that name it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from fastard.kinds import unknown
from fastard.methods.registry import METHODS

from . import (
    autoattack_contest,
    breakdown,
    growth,
    memory_cases,
    networks,
    step_contests,
    step_summary,
)
from .case import CPU, FULL, GPU, QUICK, SUITES, Bound, Case
from .declared_attacks import attack, on_attacks
from .declared_ops import on_ops
from .record import Target

AGREES_STEP = "one step from equal state"


def step(method: str, model: str, suites: tuple[str, ...], precision: str, batch: int,
         teacher: str, device: str = "cpu", goals: tuple[Bound, ...] = ()) -> Case:  # fmt: skip
    where = " gpu" if device == "cuda" else ""
    return Case(
        f"training step {method} {model} {precision} b{batch}{where}", "step",
        f"a whole {method} step: {model} from {teacher}, data and optimiser",
        step_contests.against_published, AGREES_STEP, suites, device, model, "Linf", None,
        precision, batch, 10, {"x": list(networks.image_shape(model, batch))},
        {"x": "float32", "passes": "bfloat16" if precision == "bf16" else "float32"}, rounds=3,
        bounds=goals, settings={"method": method, "teacher": teacher},
    )  # fmt: skip


def step_goals(model: str, precision: str) -> tuple[Bound, ...]:
    """The targets of `make bench-step`."""
    times = step_summary.TIMES.get((model, precision))
    needs = "AMX" if precision == "bf16" else None
    return () if times is None else (Bound("least", times, step_contests.PUBLISHED, needs=needs),)


def on_steps() -> Iterator[Case]:
    cpu = (CPU, FULL)
    for precision in ("fp32", "bf16"):
        yield step("rslad", "resnet18", cpu, precision, 32, "wrn-16-4",
                   goals=step_goals("resnet18", precision))  # fmt: skip
        yield step("rslad", "mobilenetv2", cpu if precision == "fp32" else (FULL,), precision, 32,
                   "wrn-16-4", goals=step_goals("mobilenetv2", precision))  # fmt: skip
        yield step("adaad", "mobilenetv2", (FULL,), precision, 32, "wrn-16-4")
    yield step("adaad", "mobilenetv2", (CPU,), "fp32", 16, "wrn-16-4")
    goal = (Bound("least", 4.0, step_contests.PUBLISHED, needs="H200"),)
    for precision, bound in (("tf32", ()), ("bf16", goal)):
        yield step("rslad", "resnet18", (GPU, FULL), precision, 128, "wrn-34-10", "cuda", bound)
    for method in METHODS:
        suites = (QUICK, *cpu) if method in ("rslad", "trades") else cpu
        yield Case(f"training step {method} small_cnn fp32 b64", "step",
                   f"a {method} step on small images, with the engine and without",
                   step_contests.against_eager, "the first step's loss", suites, "cpu",
                   "small_cnn", "Linf", None, "fp32", 64, 10, {"x": [64, 1, 28, 28]},
                   {"x": "float32"}, rounds=3, settings={"method": method})  # fmt: skip


def beside(base: Case, group: str, name: str, title: str, measure: Any, suites: tuple[str, ...],
           **settings: Any) -> Case:  # fmt: skip
    """Another question about an attack that is declared already."""
    where = " gpu" if base.device == "cuda" else ""
    return replace(base, name=f"{name}{where}", group=group, title=title, measure=measure,
                   suites=suites, rivals=(), bounds=(), rounds=3,
                   settings={**base.settings, **settings})  # fmt: skip


def on_growth() -> Iterator[Case]:
    sizes = {
        "cpu": {"steps": (1, 2, 4, 8, 16), "batch": (1, 2, 4, 8, 16, 32),
                "image side": (16, 32, 64), "classes": (10, 100, 1000)},
        "cuda": {"steps": (1, 2, 5, 10, 20, 40), "batch": (1, 8, 32, 128, 512),
                 "image side": (32, 64, 128, 224), "classes": (10, 100, 1000, 10000)},
    }  # fmt: skip
    for device, all_sizes in sizes.items():
        suites = (CPU, FULL) if device == "cpu" else (GPU, FULL)
        batch, steps = (4, 4) if device == "cpu" else (32, 10)
        for over, values in all_sizes.items():
            model = "mobilenetv2" if device == "cpu" else "resnet18"
            base = attack(model, (), batch=batch, steps=steps, device=device,
                          precision="fp32" if device == "cpu" else "tf32")  # fmt: skip
            quick = (QUICK,) if over == "steps" and device == "cpu" else ()
            yield beside(base, "scaling", f"growth with {over} {model}",
                         f"how an attack's seconds grow with {over}", growth.measure,
                         (*quick, *suites), over=over, sizes=values, floor=False)  # fmt: skip


def on_the_rest() -> Iterator[Case]:
    for device, suites, batch in (("cpu", (CPU, FULL), 128), ("cuda", (GPU, FULL), 128)):
        precision = "fp32" if device == "cpu" else "tf32"
        for model in ("resnet18", "mobilenetv2"):
            base = attack(model, (), precision=precision, batch=batch, device=device)
            yield beside(base, "memory", f"peak memory {model} {precision} b{batch}",
                         "peak memory of PGD, weights and process apart", memory_cases.measure,
                         suites)  # fmt: skip
            for kind in (precision, "bf16"):
                small = attack(model, (), precision=kind, batch=32 if device == "cpu" else 128,
                               device=device)  # fmt: skip
                quick = (QUICK,) if (model, kind) == ("mobilenetv2", "fp32") else ()
                yield beside(small, "breakdown", f"parts of {small.name.removesuffix(' gpu')}",
                             "where the time of an attack goes", breakdown.measure,
                             (*quick, *suites))  # fmt: skip
    for model, batch, eps, least, suites in (
        ("small_cnn", 16, 1 / 255, 3.0, (CPU, FULL)), ("resnet18", 32, 0.25 / 255, 1.3, (FULL,)),
    ):  # fmt: skip
        for device, own, bound in (("cpu", suites, least), ("cuda", (FULL,), 5.0)):
            where = " gpu" if device == "cuda" else ""
            yield Case(
                f"autoattack {model} fp32 b{batch}{where}", "autoattack",
                f"AutoAttack standard, {model}", autoattack_contest.measure,
                "robust accuracy as the official package's", own, device, model, "Linf", None,
                "fp32", batch, None, {"x": list(networks.image_shape(model, batch))},
                {"x": "float32"}, rounds=1, settings={"eps": eps},
                bounds=(Bound("least", bound, autoattack_contest.OFFICIAL,
                              needs="H200" if where else None),))  # fmt: skip


def everything() -> list[Case]:
    """All cases, those with targets before what only fills the picture."""
    found = [*on_ops(), *on_attacks(), *on_steps(), *on_the_rest(), *on_growth()]
    return sorted(found, key=lambda case: not case.bounds)


def elsewhere(cases: Iterable[Case]) -> Iterator[Target]:
    """The targets of all other cases, so that a result names each and says who measures it."""
    own = {case.name for case in cases}
    for case in everything():
        if case.name not in own:
            suites = " and ".join(case.suites)
            yield from case.targets([], {}, f"measured by suite {suites}")


def of_suite(suite: str, pattern: str | None = None) -> list[Case]:
    """The suite's cases whose names hold the pattern.

    Raises:
        ValueError: an unknown suite, a pattern that is none, or one that no name holds.
    """
    if suite not in SUITES:
        raise unknown("suite", suite, SUITES)
    cases = [case for case in everything() if suite in case.suites]
    if pattern is None:
        return cases
    try:
        chosen = [case for case in cases if re.search(pattern, case.name)]
    except re.error as error:
        raise ValueError(
            f"--case must be a regular expression, but is {pattern!r}: {error}."
        ) from error
    if not chosen:
        raise ValueError(
            f"--case {pattern!r} fits none of the {len(cases)} cases of suite {suite!r}; "
            f"for example: {', '.join(case.name for case in cases[:3])}."
        )
    return chosen
