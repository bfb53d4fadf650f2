"""Which implementation runs an op: decided here, once per op and device type, with the reason."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from typing import Any, NamedTuple

import torch

from fastard import native

NAMES = ("native", "triton", "reference")
OLDEST_FOR_TRITON = (7, 0)
_increment_version = torch.autograd.graph.increment_version
_COMPILED = {
    "cpu": {
        "pgd_step_", "random_start_", "logit_loss", "distill_kl", "fold_bn_", "epilogue",
        "epilogue_backward", "depthwise", "depthwise_backward", "make_bits", "apply_bits",
        "square_step_", "fab_step_", "apgd_step_", "apgd_keep_", "counter_noise",
    },
    "cuda": {
        "pgd_step_", "random_start_", "logit_loss", "distill_kl", "fold_bn_", "epilogue",
        "epilogue_backward", "square_step_", "fab_step_", "apgd_step_", "apgd_keep_",
        "counter_noise",
    },
}  # fmt: skip
_IN_TRITON = {"pgd_step_", "random_start_", "logit_loss", "distill_kl"}


class Backend(NamedTuple):
    """An implementation's name ("native", "triton" or "reference") and why it was chosen."""

    name: str
    reason: str


def _native(op: str, device_type: str) -> tuple[bool, str]:
    if native.module is None:
        return False, native.reason
    if op not in _COMPILED.get(device_type, ()):
        return False, f"fastard._C has no {device_type} kernel of {op}"
    return native.cuda() if device_type == "cuda" else (True, native.reason)


def _triton(device_type: str) -> tuple[bool, str]:
    """Whether the Triton kernels run there, and why not; imports triton."""
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    try:
        kernels = importlib.import_module("fastard.triton_kernels")
    except ImportError as error:
        return False, f"triton could not be imported ({error})"
    if kernels.interpreted():
        return device_type in ("cpu", "cuda"), f"Triton's interpreter has no {device_type} tensors"
    if device_type == "cpu":
        return False, "on CPU tensors Triton runs in its interpreter alone: set TRITON_INTERPRET=1"
    if device_type != "cuda" or not torch.cuda.is_available():
        return False, f"Triton has no {device_type} device"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST_FOR_TRITON:
        return False, "compute capability {}.{} is below Triton's {}.{}".format(
            *capability, *OLDEST_FOR_TRITON
        )
    return True, ""


def _choose(op: str, device_type: str) -> Backend:
    wanted = os.environ.get("FASTARD_BACKEND", "")
    if wanted not in ("", *NAMES):
        raise ValueError(f"FASTARD_BACKEND must be native, triton or reference, not {wanted!r}.")
    if wanted == "reference":
        return Backend("reference", "FASTARD_BACKEND=reference")
    if wanted == "triton" and op not in _IN_TRITON:
        wanted = ""
    usable, reason = _triton(device_type) if wanted == "triton" else _native(op, device_type)
    if wanted and not usable:
        raise RuntimeError(f"FASTARD_BACKEND={wanted}, but {reason}.")
    if wanted == "triton":
        return Backend("triton", "FASTARD_BACKEND=triton")
    if usable:
        return Backend("native", reason)
    if device_type == "cuda" and op in _IN_TRITON:
        usable, why_not = _triton(device_type)
        if usable:
            return Backend("triton", reason)
        reason = f"{reason}, and {why_not}"
    return Backend("reference", reason)


@functools.cache
def backend(op: str, device_type: str) -> Backend:
    """The backend that `op` ("pgd_step_", ...) uses on `device_type` ("cpu", "cuda", ...).

    The compiled kernels first; on CUDA devices that they do not serve the Triton kernels; plain
    PyTorch last. A fallback that nobody asked for is said once, as a warning.
    FASTARD_BACKEND=native|triton|reference, read at the first use, forces one.

    Raises:
        ValueError, RuntimeError: FASTARD_BACKEND names no backend, or one that cannot run there.
    """
    found = _choose(op, device_type)
    if found.name != "native" and found.name != os.environ.get("FASTARD_BACKEND"):
        manner = "in Triton" if found.name == "triton" else "in plain PyTorch"
        warnings.warn(
            f"fastard.ops.{op} runs {manner} on {device_type}: {found.reason}.",
            RuntimeWarning,
            stacklevel=3,
        )
    return found


def _name_on(op: str, device_type: str) -> str:
    return backend(op, device_type).name


@functools.cache
def offered(op: str, device_type: str) -> bool:
    """Whether a kernel of `op` runs natively there; for ops whose callers have another way that is
    as good, so that nothing is said where there is none."""
    return op in _COMPILED.get(device_type, ()) and _choose(op, device_type).name == "native"


# What torch.compiler.assume_constant_result sets; the decorator would import dynamo and triton.
_name_on._dynamo_marked_constant = True  # type: ignore[attr-defined]


def implementation(op: str, t: torch.Tensor) -> Any:
    """The operator that runs `op` on t's device, its overloads as attributes; None: `reference`."""
    # is_cpu spares building a device object, a fifth of a small call's overhead.
    name = _name_on(op, "cpu" if t.is_cpu else t.device.type)
    if name == "reference":
        return None
    return getattr(torch.ops.fastard if name == "native" else torch.ops.fastard_triton, op)


def detached(t: torch.Tensor) -> torch.Tensor:
    """t without its graph; t itself where it has none."""
    return t.detach() if t.requires_grad else t


def mutated(*tensors: torch.Tensor | None) -> None:
    """Tells autograd what an operator wrote: one registered through the C shim does not."""
    if torch.compiler.is_compiling():
        return
    for t in tensors:
        if t is not None and not t.is_inference():
            _increment_version(t)


def laid_out_like(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """t in like's order in memory; itself where it is so already."""
    if t.stride() == like.stride():
        return t
    return torch.empty_strided(like.shape, like.stride(), dtype=t.dtype, device=t.device).copy_(t)


def dense_samples(t: torch.Tensor) -> bool:
    """Contiguous or channels_last: no gaps, samples outermost."""
    if t.is_contiguous():
        return True
    order = sorted(range(1, t.dim()), key=t.stride)
    expected = 1
    for d in [*order, 0]:
        if t.shape[d] > 1 and t.stride(d) != expected:
            return False
        expected *= t.shape[d]
    return True


def register_fakes() -> None:
    """Operators only mutate, so that nothing is left to infer."""

    def nothing(*_args: object) -> None:
        return None

    for name in ("pgd_step_.Scalar", "pgd_step_.Tensor", "random_start_.Scalar",
                 "random_start_.Tensor", "logit_loss", "distill_kl", "fold_bn_", "epilogue",
                 "epilogue_backward", "depthwise", "depthwise_backward", "make_bits",
                 "apply_bits", "square_step_", "fab_step_",
                 "apgd_step_", "apgd_keep_", "counter_noise"):  # fmt: skip
        torch.library.register_fake(f"fastard::{name}", nothing)


if native.module is not None:
    register_fakes()
