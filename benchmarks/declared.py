"""Every case of `fastard bench`, declared; a suite is those that name it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from fastard.kinds import unknown
from fastard.methods.registry import METHODS

from . import (
    attack_contests,
    autoattack_case,
    breakdown,
    growth,
    layer_cases,
    memory_cases,
    networks,
    op_contests,
    rivals,
    step_contests,
)
from . import gpu_cases as ops
from .attack_contests import COMPILE, PUBLISHED
from .case import CPU, FULL, GPU, QUICK, SUITES, Bound, Case
from .gpu_case import Case as Op
from .record import Target

LIBRARIES = tuple(rivals.RIVALS)
AGREES_LOSS = "x' in ball and box, its loss as high as the published loop's"
AGREES_OP = "the error against fp64"
AGREES_STEP = "one step from equal state"
SMALL_IMAGES, LARGE_IMAGES = (128, 3, 32, 32), (32, 3, 224, 224)


def op(made: Op, suites: tuple[str, ...], title: str, device: str = "cpu",
       bounds: tuple[Bound, ...] = ()) -> Case:  # fmt: skip
    shapes = {"x": list(made.shape)}
    return Case(
        f"{made.name}{' gpu' if device == 'cuda' else ''}", "op", title, op_contests.measure,
        AGREES_OP, suites, device, shapes=shapes, bytes=made.bytes(), batch=made.shape[0],
        dtypes={"x": getattr(made, "dtype", "float32")}, norm=getattr(made, "norm", None),
        precision="bf16" if getattr(made, "dtype", "") == "bfloat16" else "fp32",
        rivals=(COMPILE,), rounds=20, seconds=1.0, most=5.0, warm_up=3, settings={"op": made},
        bounds=bounds,
    )  # fmt: skip


def on_ops() -> Iterator[Case]:
    copy = (Bound("least", 0.9, figure="share_of_copy"),)
    both = (CPU, FULL)
    small, large = SMALL_IMAGES, LARGE_IMAGES
    step, start = "the step and the projection, in place", "an attack's start from given noise"
    loss = "the attack's loss and its gradient in the logits"
    yield op(ops.StepCase(small), (QUICK, *both), step)
    yield op(ops.StepCase(large), both, step, bounds=copy)
    for norm in ("L2", "L1"):
        yield op(ops.StepCase(small, norm=norm), both, step)
        yield op(ops.StepCase(large, norm=norm), (FULL,), step)
    yield op(ops.FedStepCase(large), both, "the step that also writes the next input in bf16")
    yield op(ops.StartCase(small), both, start)
    yield op(layer_cases.NormStartCase(small), both, start)
    yield op(ops.LossCase((128, 10)), (QUICK, *both), loss)
    yield op(ops.LossCase((256, 1000)), both, loss)
    yield op(ops.LossCase((256, 1000), dtype="bfloat16"), (FULL,), loss)
    for kind in ("ce", "margin", "dlr"):
        yield op(layer_cases.LabelLossCase((128, 10), kind=kind), both, loss)
        yield op(layer_cases.LabelLossCase((256, 1000), kind=kind), (FULL,), loss)
    yield op(ops.DistillCase((256, 1000)), both, "the outer loss and the student's gradient")
    layer = (32, 64, 32, 32)
    yield op(layer_cases.EpilogueCase(layer), both, "bias, residual and activation in one pass")
    yield op(layer_cases.EpilogueBackwardCase(layer), both, "the epilogue's way back in one pass")
    yield op(layer_cases.DepthwiseCase(layer), both, "a depthwise convolution with its activation")
    yield Case("fold_bn_ resnet18", "op", "every layer's normalisation folded into its weights",
               op_contests.refresh, "the folded network's logits", both, model="resnet18",
               precision="fp32", rounds=10, seconds=1.0)  # fmt: skip
    for made in ops.CASES:
        yield op(made, (GPU, FULL), "as `make gpu-check` times it, from replayed graphs", "cuda",
                 tuple(of_kernels(made)))  # fmt: skip
    layer = (128, 64, 32, 32)
    for made in (layer_cases.EpilogueCase(layer), layer_cases.EpilogueBackwardCase(layer),
                 layer_cases.NormStartCase((128, 3, 224, 224)),
                 *(layer_cases.LabelLossCase((8192, 1000), kind=k) for k in ("ce", "margin", "dlr"))
                 ):  # fmt: skip
        yield op(made, (GPU, FULL), "an op, from replayed graphs", "cuda")


def of_kernels(made: Op) -> Iterator[Bound]:
    """An op's targets on a GPU; what a launch may cost is `make gpu-check`'s own figure."""
    for kind, least in made.targets.items():
        if kind == "copy":
            yield Bound("least", least, figure="share_of_copy")
        elif kind in ("eager", "compile"):
            yield Bound("least", least, {"compile": COMPILE}.get(kind, kind))


def attack(
    model: str, suites: tuple[str, ...], loss: str = "kl", precision: str = "fp32",
    batch: int = 32, steps: int = 10, norm: str = "Linf", device: str = "cpu",
    against: tuple[str, ...] = (), rounds: int = 4, most: float = 60.0,
    bounds: tuple[Bound, ...] = (), **settings: Any,
) -> Case:  # fmt: skip
    names = {"kl": "KL to a teacher's logits", "ce": "the cross-entropy", "trades": "TRADES' KL",
             "pair": "KL through student and teacher", "iad": "the cross-entropy in train mode"
             }  # fmt: skip
    where = " gpu" if device == "cuda" else ""
    kind = f"{loss} {norm}" if norm != "Linf" else loss
    shape = list(networks.image_shape(model, batch))
    classes = settings.get("classes", 10)
    shapes = {"x": shape}
    if loss == "kl":
        shapes["teacher_logits"] = [batch, classes]
    return Case(
        f"pgd-{steps} {kind} {model} {precision} b{batch}{where}", "attack",
        f"PGD-{steps} on {names[loss]}, {norm}, {model}", attack_contests.measure, AGREES_LOSS,
        suites, device, model, norm, loss, precision, batch, steps, shapes,
        {"x": "float32", "teacher_logits": "float32"} if loss == "kl" else {"x": "float32"},
        rivals=against, rounds=rounds, most=most, warm_up=2 if device == "cuda" else 0,
        bounds=bounds, settings=settings,
    )  # fmt: skip


def bounds(published: float | None, compiled: float, floor: float, needs: str | None = None
           ) -> tuple[Bound, ...]:  # fmt: skip
    """design's performance targets of one attack."""
    first = () if published is None else (Bound("least", published, PUBLISHED, needs=needs),)
    return (*first, Bound("least", compiled, COMPILE), Bound("most", floor, figure="over_floor"))


def on_attacks() -> Iterator[Case]:
    cpu, full = (CPU, FULL), (FULL,)
    last = {"modes": ("default",), "forms": ("channels_last",)}
    aimed = {
        ("resnet18", "fp32"): bounds(1.25, 1.1, 1.25),
        ("resnet18", "bf16"): bounds(5.0, 1.3, 1.25, "AMX"),
        ("mobilenetv2", "fp32"): bounds(3.0, 1.3, 1.6),
        ("mobilenetv2", "bf16"): bounds(6.0, 1.3, 1.6, "AMX"),
    }
    for (model, precision), goals in aimed.items():
        yield attack(model, cpu, precision=precision, against=(COMPILE,), bounds=goals)
    # Of the quick suite: no compilation, fewer images, no targets.
    for model, precision in aimed:
        suites = (QUICK, *cpu) if (model, precision) == ("mobilenetv2", "fp32") else (QUICK,)
        yield attack(model, suites, precision=precision, batch=8, rounds=3, most=10.0)
    for precision in ("fp32", "bf16"):
        yield attack("preactresnet18", full, precision=precision, against=(COMPILE,), **last)
        yield attack("wrn-28-10", full, precision=precision, batch=8, steps=4, rounds=3,
                     against=(COMPILE,), **last)  # fmt: skip
    yield attack("preactresnet18", (CPU,), batch=16, rounds=3)
    yield attack("wrn-28-10", (CPU,), batch=4, steps=2, rounds=3)
    yield attack("wrn-34-10", cpu, batch=2, steps=2, rounds=3)
    yield attack("resnet50", cpu, batch=2, steps=2, rounds=3)
    yield attack("vit_small_patch16_224", cpu, batch=2, steps=2, rounds=3)
    yield attack("mobilenetv2", (QUICK,), "ce", batch=8, rounds=3, against=LIBRARIES)
    yield attack("resnet18", cpu, "ce", batch=16, rounds=3, against=LIBRARIES)
    for norm in ("L2", "L1"):
        yield attack("mobilenetv2", cpu, "ce", batch=16, norm=norm, rounds=3, against=LIBRARIES)
    yield attack("mobilenetv2", cpu, "trades", batch=16, rounds=3)
    yield attack("mobilenetv2", cpu, "pair", batch=16, rounds=3, teacher="resnet18")
    yield attack("mobilenetv2", cpu, "iad", batch=16, rounds=3)
    for batch in (1, 128, 512):
        yield attack("mobilenetv2", cpu if batch == 1 else full, batch=batch, rounds=3)
    yield from gpu_attacks()


def gpu_attacks() -> Iterator[Case]:
    gpu, full = (GPU, FULL), (FULL,)
    h200 = {"resnet18": (4.0, 8.0), "mobilenetv2": (6.0, 10.0)}
    for model, (tf32, bf16) in h200.items():
        for precision, published in (("tf32", tf32), ("bf16", bf16)):
            yield attack(model, gpu, precision=precision, batch=128, device="cuda", rounds=10,
                         against=(COMPILE,),
                         bounds=bounds(published, 1.3, 1.25, "H200"))  # fmt: skip
        for precision in ("fp32", "fp16"):
            yield attack(model, gpu, precision=precision, batch=128, device="cuda", rounds=10)
    yield attack("resnet18", gpu, "ce", "tf32", 128, device="cuda", rounds=5, against=LIBRARIES)
    for norm in ("L2", "L1"):
        yield attack("resnet18", gpu, "ce", "tf32", 128, norm=norm, device="cuda", rounds=5)
    yield attack("resnet18", gpu, "pair", "tf32", 128, device="cuda", teacher="wrn-34-10")
    yield attack("resnet18", gpu, "trades", "tf32", 128, device="cuda")
    for batch in (1, 8, 32, 512):
        yield attack("resnet18", gpu, precision="bf16", batch=batch, device="cuda", rounds=10)
    for model in ("preactresnet18", "wrn-28-10", "wrn-34-10"):
        yield attack(model, gpu, precision="bf16", batch=128, device="cuda", rounds=5)
    for model in ("resnet50", "vit_small_patch16_224"):
        yield attack(model, gpu, precision="bf16", batch=64, device="cuda", rounds=5)
        yield attack(model, full, precision="tf32", batch=64, device="cuda", rounds=5)


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


def on_steps() -> Iterator[Case]:
    cpu = (CPU, FULL)
    for precision in ("fp32", "bf16"):
        yield step("rslad", "resnet18", cpu, precision, 32, "wrn-16-4")
        yield step("rslad", "mobilenetv2", cpu if precision == "fp32" else (FULL,), precision, 32,
                   "wrn-16-4")  # fmt: skip
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
                f"AutoAttack standard, {model}", autoattack_case.measure,
                "robust accuracy as the official package's", own, device, model, "Linf", None,
                "fp32", batch, None, {"x": list(networks.image_shape(model, batch))},
                {"x": "float32"}, rounds=1, settings={"eps": eps},
                bounds=(Bound("least", bound, autoattack_case.OFFICIAL,
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
