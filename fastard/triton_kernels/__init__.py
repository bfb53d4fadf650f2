"""The ops in Triton, as `torch.ops.fastard_triton` with the schemas of `torch.ops.fastard`.

For CUDA devices that the compiled kernels do not serve, ROCm, and on request. Importing this
imports triton and registers the operators; on CPU tensors they run in Triton's interpreter alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from fastard.triton_kernels.call import Call
from fastard.triton_kernels.images import start_calls, step_calls
from fastard.triton_kernels.linf import linf_step
from fastard.triton_kernels.logits import distill_calls, loss_calls

_STEP = "(Tensor(a!) x_adv, Tensor grad, Tensor x, {0} eps, {0} alpha, int norm, float clip_min, "
_STEP += "float clip_max, float l1_sparsity, Tensor(b!)? feed, Tensor? mean, Tensor? std) -> ()"
_START = "(Tensor(a!) x_adv, Tensor x, Tensor noise, Tensor? radius, {0} eps, int norm, int kind, "
_START += "float sigma, bool clip, float clip_min, float clip_max) -> ()"
# Name -> its schema and what makes its launches of the same arguments.
OPERATORS: dict[str, tuple[str, Callable[..., list[Call]]]] = {
    "pgd_step_.Scalar": (_STEP.format("float"), step_calls),
    "pgd_step_.Tensor": (_STEP.format("Tensor"), step_calls),
    "random_start_.Scalar": (_START.format("float"), start_calls),
    "random_start_.Tensor": (_START.format("Tensor"), start_calls),
    "logit_loss": (
        "(Tensor logits, Tensor? target, Tensor? labels, Tensor? goals, int kind, bool targeted, "
        "float temperature, float kappa, float mix, float scale, Tensor(a!) loss, "
        "Tensor(b!) dlogits, Tensor(c!)? dtarget) -> ()",
        loss_calls,
    ),
    "distill_kl": (
        "(Tensor student, Tensor teacher, float temperature, float log_floor, float scale, "
        "Tensor(a!) loss, Tensor(b!)? dstudent, Tensor(c!)? dteacher, Tensor(d!)? partials, "
        "Tensor(e!)? ticket) -> ()",
        distill_calls,
    ),
}


def interpreted() -> bool:
    """Whether TRITON_INTERPRET was set when the kernels were made."""
    return not isinstance(linf_step, triton.runtime.JITFunction)


def _operator(calls: Callable[..., list[Call]]) -> Callable[..., None]:
    def run(first: Tensor, *rest: Any) -> None:
        for call in calls(first, *rest):
            call.launch(first)

    return run


def _nothing(*_args: object) -> None:
    """The operators only mutate: nothing is left to infer."""


def _register() -> torch.library.Library:
    library = torch.library.Library("fastard_triton", "DEF")
    for name, (schema, calls) in OPERATORS.items():
        library.define(name + schema)
        for key in ("CUDA", "CPU"):
            library.impl(name, _operator(calls), key)
        torch.library.register_fake(f"fastard_triton::{name}", _nothing, lib=library)
    return library


# The operators live as long as this.
LIBRARY = _register()
