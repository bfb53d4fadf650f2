"""The cases of single ops, on the CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

from . import gpu_cases as ops
from . import layer_cases, op_contests
from .attack_contests import COMPILE
from .case import CPU, FULL, GPU, QUICK, Bound, Case
from .gpu_case import Case as Op

AGREES = "the error against fp64"
SMALL_IMAGES, LARGE_IMAGES = (128, 3, 32, 32), (32, 3, 224, 224)


def op(made: Op, suites: tuple[str, ...], title: str, device: str = "cpu",
       bounds: tuple[Bound, ...] = ()) -> Case:  # fmt: skip
    shapes = {"x": list(made.shape)}
    return Case(
        f"{made.name}{' gpu' if device == 'cuda' else ''}", "op", title, op_contests.measure,
        AGREES, suites, device, shapes=shapes, bytes=made.bytes(), batch=made.shape[0],
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
