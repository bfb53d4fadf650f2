"""Which arithmetic a program's passes run in, and why."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from fastard.engine.unwrap import Model

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class Precision(NamedTuple):
    """A resolved precision: autocast's dtype (None: full), TF32 on CUDA (None: as torch has it)."""

    name: str
    dtype: torch.dtype | None
    tf32: bool | None
    reason: str


@functools.cache
def cpu_bf16() -> tuple[bool, str]:
    """Whether this CPU multiplies bf16 matrices faster than fp32 ones."""
    if torch.cpu._is_amx_tile_supported():
        return True, "the CPU has AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return True, "the CPU has AVX512_BF16"
    return False, "the CPU has neither AMX nor AVX512_BF16, bf16 would be slower"


def resolve(precision: str | None, device_type: str) -> Precision:
    """The precision asked for, as this device can run it."""
    if precision is None:
        if not torch.is_autocast_enabled(device_type):
            return Precision("fp32", None, None, "no precision asked for, autocast is off")
        dtype = torch.get_autocast_dtype(device_type)
        return Precision(_NAMES.get(dtype, str(dtype)), dtype, None, "autocast is on")
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision must be None or one of {', '.join(PRECISIONS)}, but is {precision!r}."
        )
    if precision in ("fp32", "tf32"):
        if precision == "tf32" and device_type != "cuda":
            return Precision("fp32", None, False, f"tf32 runs as fp32 on {device_type}")
        return Precision(precision, None, precision == "tf32", f"precision={precision!r}")
    if device_type == "cpu":
        faster, why = cpu_bf16()
        if not faster:
            return Precision("fp32", None, False, f"{precision} runs as fp32: {why}")
        asked = "" if precision == "bf16" else "fp16 runs as bf16 on cpu, "
        return Precision("bf16", torch.bfloat16, None, f"{asked}{why}")
    return Precision(precision, _HALF[precision], None, f"precision={precision!r}")


def head_weight(model: Model) -> torch.Tensor | None:
    """The weight of the last linear layer, which makes the logits."""
    if not isinstance(model, nn.Module):
        return None
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return linears[-1].weight if linears else None


class FullPrecisionHead(TorchFunctionMode):
    """The final linear layer in fp32 under autocast: logits rounded to bf16 hide adversarials."""

    def __init__(self, weight: torch.Tensor, device_type: str) -> None:
        super().__init__()
        self.weight, self.device_type = weight, device_type

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and len(args) > 1 and args[1] is self.weight:
            with torch.autocast(self.device_type, enabled=False):
                whole = [a.float() if isinstance(a, torch.Tensor) else a for a in args]
                bias = (kwargs or {}).get("bias")
                return func(*whole, **({} if bias is None else {"bias": bias.float()}))
        return func(*args, **(kwargs or {}))


@contextmanager
def tf32(allowed: bool | None) -> Iterator[None]:
    if allowed is None or not torch.cuda.is_available():
        yield
        return
    # The older allow_tf32 raises where the caller has used these, and is answered from them.
    matmul: Any = torch.backends.cuda.matmul
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    kept = matmul.fp32_precision, conv.fp32_precision
    try:
        matmul.fp32_precision = conv.fp32_precision = "tf32" if allowed else "ieee"
        yield
    finally:
        matmul.fp32_precision, conv.fp32_precision = kept


@contextmanager
def arithmetic(precision: Precision, model: Model, device_type: str) -> Iterator[None]:
    """Runs a block in `precision`; autocast's cache of cast weights starts and ends empty."""
    low = precision.dtype is not None
    head = head_weight(model) if low else None
    torch.clear_autocast_cache()
    try:
        with tf32(precision.tf32), torch.autocast(device_type, dtype=precision.dtype, enabled=low):
            if head is None:
                yield
            else:
                with FullPrecisionHead(head, device_type):
                    yield
    finally:
        torch.clear_autocast_cache()
