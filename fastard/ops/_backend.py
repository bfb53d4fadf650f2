"""Which implementation runs an op: decided here, once per op and device type, with the reason."""

from __future__ import annotations

import functools
import os
import warnings
from typing import NamedTuple

import torch

from fastard import native

_increment_version = torch.autograd.graph.increment_version
_COMPILED = {
    "cpu": {
        "pgd_step_", "random_start_", "logit_loss", "distill_kl", "fold_bn_", "epilogue",
        "epilogue_backward", "depthwise", "make_bits", "apply_bits",
    },
    "cuda": {"pgd_step_", "logit_loss"},
}  # fmt: skip


class Backend(NamedTuple):
    """An implementation's name ("native" or "reference") and why it was chosen."""

    name: str
    reason: str


def _choose(op: str, device_type: str) -> Backend:
    wanted = os.environ.get("FASTARD_BACKEND", "")
    if wanted not in ("", "native", "reference"):
        raise ValueError(f"FASTARD_BACKEND must be native or reference, not {wanted!r}.")
    if wanted == "reference":
        return Backend("reference", "FASTARD_BACKEND=reference")
    if native.module is None:
        return Backend("reference", native.reason)
    if op not in _COMPILED.get(device_type, ()):
        return Backend("reference", f"fastard._C has no {device_type} kernel of {op}")
    usable, reason = native.cuda() if device_type == "cuda" else (True, native.reason)
    return Backend("native" if usable else "reference", reason)


@functools.cache
def backend(op: str, device_type: str) -> Backend:
    """The backend that `op` ("pgd_step_", ...) uses on `device_type` ("cpu", "cuda", ...).

    A fallback to plain PyTorch that nobody asked for is said once, as a warning.
    FASTARD_BACKEND=native|reference, read at the first use, forces one.
    """
    found, wanted = _choose(op, device_type), os.environ.get("FASTARD_BACKEND", "")
    if wanted == "native" and found.name != "native":
        raise RuntimeError(f"FASTARD_BACKEND=native, but {found.reason}.")
    if found.name == "reference" and wanted != "reference":
        warnings.warn(
            f"fastard.ops.{op} runs in plain PyTorch on {device_type}: {found.reason}.",
            RuntimeWarning,
            stacklevel=3,
        )
    return found


@functools.cache
def offered(op: str, device_type: str) -> bool:
    """Whether a kernel of `op` runs natively there; for ops that have another way, not a slower
    one, so that nothing is said where there is none."""
    return op in _COMPILED.get(device_type, ()) and _choose(op, device_type).name == "native"


def _native_on(op: str, device_type: str) -> bool:
    return backend(op, device_type).name == "native"


# What torch.compiler.assume_constant_result sets; the decorator would import dynamo and triton.
_native_on._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_native(op: str, t: torch.Tensor) -> bool:
    # is_cpu spares building a device object, a fifth of a small call's overhead.
    return _native_on(op, "cpu" if t.is_cpu else t.device.type)


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
                 "apply_bits"):  # fmt: skip
        torch.library.register_fake(f"fastard::{name}", nothing)


if native.module is not None:
    register_fakes()
