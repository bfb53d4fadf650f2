"""One op beside eager PyTorch, `torch.compile` and a copy of as many bytes.

On the CPU calls are timed in turn from reset buffers; on a GPU graphs of many calls over rotated
buffers are replayed. What is asserted first: the error against fp64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

import fastard
from fastard.engine import Program

from . import gpu_case, gpu_kernels, networks, timing
from .attack_contests import COMPILE
from .case import Case
from .contest import COPY, Contest, Contestant, figures, held
from .gpu_case import outputs
from .record import OURS, Agreement, Line, Seconds
from .rivals import Absent

EAGER = "eager"
WHAT = "the error against fp64, relative to the largest value,"
# gpu_kernels' names of the same contestants.
NAMES = {"native": OURS, "eager": EAGER, "compile": COMPILE, "copy": COPY}


def op_of(case: Case) -> gpu_case.Case:
    return case.settings["op"]


def calls(op: gpu_case.Case, case: Case) -> dict[str, Callable[[gpu_case.Set], Any]]:
    """What each contestant does with one set of tensors."""
    chain, compiled = op.chain(), torch.compile(op.formula(), fullgraph=True, dynamic=False)
    found: dict[str, Callable[[gpu_case.Set], Any]] = {
        OURS: op.fastard, EAGER: lambda s: outputs(chain(*op.arguments(s))),
    }  # fmt: skip
    if COMPILE in case.rivals:
        found[COMPILE] = lambda s: outputs(compiled(*op.arguments(s)))
    return found


def contest(case: Case) -> Contest:
    """On the CPU: each contestant on the same set of tensors."""
    op = op_of(case)
    torch._dynamo.reset()  # else a second shape is compiled for any shape
    s = op.inputs(case.device, torch.Generator(case.device).manual_seed(0))
    exact = op.exact(s)
    half = torch.randint(256, (op.bytes() // 2,), dtype=torch.uint8, device=case.device)
    to = torch.empty_like(half)

    def judge(who: str, result: Any) -> Agreement:
        off, most = gpu_kernels.error(op, result, exact), op.allowed(rival=who != OURS)
        return Agreement(WHAT, off, most, off <= most)

    versions = {OURS: fastard.__version__}
    found = {
        who: Contestant(lambda call=call: call(s), versions.get(who, torch.__version__))
        for who, call in calls(op, case).items()
    }
    found[COPY] = Contestant(lambda: to.copy_(half), torch.__version__, judged=False)
    return Contest(found, judge, before=lambda: op.reset(s), many=True)


def measure(case: Case) -> Iterator[Line]:
    """The lines of an op's case."""
    declared = dataclasses.replace(case, bytes=op_of(case).bytes())
    if case.device == "cuda":
        yield from on_gpu(declared)
    else:
        yield from held(declared, contest(declared))


def on_gpu(case: Case) -> Iterator[Line]:
    """Agreement of every contestant, then graph replays of those that agree."""
    op = op_of(case)
    torch._dynamo.reset()
    candidates = calls(op, case)
    s = op.inputs(case.device, torch.Generator(case.device).manual_seed(0))
    keyed = {who: key for key, who in NAMES.items()}
    named = {keyed[who]: call for who, call in candidates.items()}
    errors, failed = gpu_kernels.agreement(op, named, s)
    verdicts: dict[str, Agreement | None] = {
        NAMES[key]: Agreement(WHAT, e["error"], e["allowed"], e["error"] <= e["allowed"])
        for key, e in errors.items()
    }
    del s
    right = {key: call for key, call in named.items() if key not in failed}
    with timing.Watch() as watch:
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        found, more = gpu_kernels.timed(op, right, l2, case.device)
    taken = {
        NAMES[key]: Seconds(t["min"], t["median"], t["spread"], t["replays"],
                            found["calls_a_replay"][key])
        for key, t in found["seconds"].items() if key in NAMES
    }  # fmt: skip
    running = {who: Contestant(lambda: None, torch.__version__) for who in taken}
    if OURS in running:
        running[OURS].version = fastard.__version__
    empty = Contest(running, lambda *_: Agreement(WHAT, 0.0, 0.0, True))
    agreed = {who: verdicts.get(who) for who in running}
    yield from figures(case, empty, running, taken, agreed, {}, watch)
    for key, said in failed.items():
        status = "disagrees" if key in errors else "failed"
        yield case.line(NAMES[key], status, reason=said, agreement=verdicts.get(NAMES[key]))
    for key in right.keys() - found["seconds"].keys():
        said = next((line for line in more if f" {key} " in line), "it could not be replayed")
        yield case.line(NAMES[key], "failed", reason=said)


def refresh(case: Case) -> Iterator[Line]:
    """`fold_bn_` of a whole network's layers, beside folding them one by one in PyTorch."""
    assert case.model is not None
    net = networks.build(case.model).to(case.device).eval()
    x = torch.rand(networks.image_shape(case.model, 2)).to(case.device)
    program = Program(net, "fp32")
    with program.running(x):
        plan = program.plan
    if plan is None:
        raise Absent(f"the network has no plan: {program.made}")
    # In the CIFAR networks every convolution's normalisation is registered after it.
    pairs = list(zip((m for m in net.modules() if isinstance(m, nn.Conv2d)),
                     (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)),
                     strict=True))  # fmt: skip

    @torch.no_grad()
    def eager() -> list[Any]:
        return [
            fuse_conv_bn_weights(a.weight, a.bias, b.running_mean, b.running_var, b.eps, b.weight,
                                 b.bias)
            for a, b in pairs
        ]  # fmt: skip

    def judge(who: str, result: Any) -> Agreement:
        with torch.no_grad(), program.running(x):
            wanted = net(x)
            off = float((program.forward(x) - wanted).abs().max() / wanted.abs().max())
        return Agreement("the folded network's error, relative to the largest logit,", off, 1e-4,
                         off <= 1e-4)  # fmt: skip

    weight = next(net.parameters()).data
    found = {OURS: Contestant(plan.refresh, fastard.__version__),
             EAGER: Contestant(eager, torch.__version__, judged=False)}  # fmt: skip
    yield from held(case, Contest(found, judge, before=lambda: weight.mul_(1.0), many=True))
