"""What a program does, as text: folded, fused, left to autograd, and what it should cost."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastard.engine.convolve import Aten, OneDNN, onednn, refused_acts
from fastard.engine.cost import cost, floor, rates
from fastard.engine.layers import Activation, Affine, Convolution, Layer, Segment, Sum
from fastard.engine.plan import Plan
from fastard.engine.precision import Precision, resolve
from fastard.engine.segment import SegmentStep
from fastard.engine.steps import ConvolutionStep, DepthwiseStep, LinearStep

if TYPE_CHECKING:
    from fastard.engine.program import Program


def explanation(program: Program, device: str | torch.device | None) -> str:
    """The lines that `Program.explain` prints."""
    where = torch.device(device) if device is not None else device_of(program.model)
    precision = resolve(program.precision, where.type)
    inside = f" inside {' > '.join(program.wrappers)}" if program.wrappers else ""
    lines = [f"model      {type(program.model).__name__}{inside}"]
    made = program.made
    if made is None and program.mode == "eval" and program.engine:
        lines.append("program    made at the first call; eager autograd where it cannot be traced")
    elif made is None or made.plan is None:
        why = made.reason if made is not None else "mode='train' or engine=False"
        lines.append(f"program    eager autograd: {why}")
    else:
        lines += _plan_lines(made.plan) + _part_lines(made.plan)
    statistics = f", BN statistics {program.bn_stats}" if program.mode == "train" else ""
    lines.append(f"mode       {program.mode}{statistics}")
    lines.append(f"precision  {precision.name} on {where.type}: {precision.reason}")
    if precision.dtype is not None:
        lines.append("head       final linear layer, logits and loss in fp32")
    plan = made.plan if made is not None else None
    if program.normalises or (plan is not None and plan.network.mean is not None):
        lines.append("input      normalised by the step's second output")
    if plan is not None:
        lines += _cost_lines(program, plan, precision)
    elif made is not None:
        lines.append("cost       not estimated: nothing was traced")
    lines.append(f"captured   {program.captured or _ALONE}")
    if program.seconds is not None:
        lines.append(_last_line(program))
    return "\n".join(lines)


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get(
        dtype, str(dtype).removeprefix("torch.")
    )


def _part_lines(plan: Plan) -> list[str]:
    """Which part runs in which precision; the program's own is not always every layer's."""
    low = _short(plan.dtype)
    found: Counter[str] = Counter()
    for step in plan.steps:
        if isinstance(step, ConvolutionStep):
            found[f"convolutions in {_short(step.dtype)}"] += 1
        elif isinstance(step, DepthwiseStep):
            kept = "" if low == "fp32" else ", their filters and sums in fp32"
            found[f"depthwise convolutions in {low}{kept}"] += 1
        elif isinstance(step, LinearStep):
            found[f"linear layers in {_short(step.weights.dtype)}"] += 1
        elif isinstance(step, SegmentStep):
            found[f"pieces in {low if step.low is None else f'{low} under autocast'}"] += 1
        else:
            found[f"elementwise passes in {low}"] += 1
    return ["parts      " + "; ".join(f"{n} {what}" for what, n in found.items())] if found else []


def _cost_lines(program: Program, plan: Plan, precision: Precision) -> list[str]:
    work, seen = cost(plan), rates(plan, precision.tf32)
    least = floor(work, seen)
    bound = "FLOPs" if work.flops / seen.flops >= work.bytes / seen.bytes else "bytes"
    apart = any(isinstance(layer, Segment) for layer in plan.network.layers)
    lines = [
        f"cost       {work.flops / 1e9:.3g} GFLOP and {work.bytes / 1e6:.3g} MB of activations an "
        "image, forward and input gradient" + (", autograd's pieces not counted" if apart else ""),
        f"floor      {least * 1e3:.3g} ms an image by its {bound}, estimated from a matrix product "
        f"at {seen.flops / 1e9:.0f} GFLOP/s and a copy at {seen.bytes / 1e9:.0f} GB/s",
    ]
    if program.passed.images:
        lines.append(
            f"           {least * 1e3 * program.passed.images:.3g} ms for the passes of the last "
            "running block"
        )
    return lines


def _last_line(program: Program) -> str:
    assert program.seconds is not None
    done = program.passed
    passes = f": {done.forwards} forwards, {done.gradients} gradients" if done.forwards else ""
    return f"last       {program.seconds * 1e3:.1f} ms in the last running block{passes}"


def _plan_lines(plan: Plan) -> list[str]:
    layers = plan.network.layers
    convolutions = [v for v in layers if isinstance(v, Convolution)]
    spatial = [v for v in convolutions if v.spatial]
    folded = sum((v.after is not None) + (v.before is not None) for v in convolutions)
    left = [v.name for v in layers if isinstance(v, Affine)]
    lines = [
        f"program    compiled: {len(spatial)} convolutions, "
        f"{len(convolutions) - len(spatial)} linear layers, {len(left)} normalisations, "
        f"{sum(isinstance(v, (Sum, Activation)) for v in layers)} other elementwise passes",
        f"folded     {folded} normalisations into weights, renewed at every attack"
        + (f"; not {', '.join(left[:4])}{', ...' if len(left) > 4 else ''}" if left else ""),
        f"fused      {_fused_acts(layers)} and {sum(v.residual for v in convolutions)} residual "
        "additions into convolutions, linear layers, normalisations and sums",
    ]
    kernels = Counter(_KERNELS[type(k)] for k in plan.kernels)
    if kernels:
        lines.append("kernels    " + ", ".join(f"{n} by {name}" for name, n in kernels.items()))
    if plan.device.type == "cpu" and not onednn()[0]:
        lines.append(f"           {onednn()[1]}")
    inside = {k.layer.act for k in plan.kernels if isinstance(k, OneDNN)}
    refused = {act: why for act, why in refused_acts().items() if act in inside} if inside else {}
    lines += [f"{act} apart, oneDNN: {why}" for act, why in refused.items()]
    lines += [
        f"sum apart  {k.layer.name}: {k.refused}"
        for k in plan.kernels
        if isinstance(k, OneDNN) and k.refused
    ]
    segments = [v for v in layers if isinstance(v, Segment)]
    if segments:
        names = Counter(_name(node) for v in segments for node in v.nodes)
        shown = ", ".join(f"{n} x{k}" if k > 1 else n for n, k in names.most_common(8))
        lines.append(f"autograd   {len(segments)} pieces: {shown}")
    for name, why in plan.network.leaves.items():
        lines.append(f"leaf       {name or 'the model'}: {why}")
    if plan.parts.of(256) > 1:
        most = 256 // plan.parts.of(256)
        lines.append(f"batches    run in parts of about {most} images, which fit the caches")
    return lines


def _fused_acts(layers: list[Layer]) -> str:
    owners = [v for v in layers if isinstance(v, (Convolution, Affine, Sum))]
    fused = Counter(v.act for v in owners if v.act != "none")
    named = ", ".join(f"{act} x{n}" for act, n in fused.most_common())
    return f"{sum(fused.values())} activations" + (f" ({named})" if named else "")


_ALONE = (
    "no: PGD, PairPGD, Inference and the passes of apgd, fab, square and AutoAttack are, on CUDA, "
    "from the second like call on"
)
_KERNELS: dict[type, str] = {
    OneDNN: "oneDNN with fused epilogues", Aten: "aten and an epilogue kernel",
    DepthwiseStep: "an own depthwise kernel",
}  # fmt: skip


def _name(node: Any) -> str:
    if node.op == "call_module":
        return str(node.target)
    return str(getattr(node.target, "__name__", node.target))


def device_of(model: Any) -> torch.device:
    if isinstance(model, nn.Module):
        for t in (*model.parameters(), *model.buffers()):
            return t.device
    return torch.device("cpu")
