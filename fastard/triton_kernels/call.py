"""One launch of one kernel: what the operators make and the tests compile."""

from __future__ import annotations

import contextlib
import struct
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

# The same roundings as plain PyTorch, bit for bit in the Linf step; no kernel is bound by them.
OPTIONS = {"enable_fp_fusion": False}
MOST_WARPS = 16 if torch.version.hip else 32  # of 64 lanes, or of 32


class Call(NamedTuple):
    """A kernel, how many programs of it, and everything that it is given."""

    kernel: Any
    programs: int
    warps: int
    arguments: dict[str, Any]
    constants: dict[str, Any]

    def launch(self, tensor: Tensor) -> None:
        """On the tensor's device and torch's current stream there."""
        warps = min(self.warps, MOST_WARPS)
        # Triton launches on the current device.
        there = torch.cuda.device_of(tensor) if tensor.is_cuda else contextlib.nullcontext()
        with there:
            self.kernel[(self.programs,)](
                **self.arguments, **self.constants, num_warps=warps, **OPTIONS
            )


def accumulator(t: Tensor) -> Any:
    return tl.float64 if t.dtype == torch.float64 else tl.float32


def number(value: float, t: Tensor) -> float | int:
    """A scalar argument for a kernel over t: itself, or its bits where t is fp64."""
    if t.dtype == torch.float64:
        return struct.unpack("q", struct.pack("d", value))[0]
    return float(value)


def bound(value: float | Tensor, name: str, t: Tensor) -> dict[str, Any]:
    """eps or alpha as three arguments: its tensor, its number, its step from sample to sample."""
    if isinstance(value, Tensor):
        step = int(value.numel() > 1)
        return {f"{name}_values": value, name: number(0.0, t), f"{name}_step": step}
    return {f"{name}_values": None, name: number(value, t), f"{name}_step": 0}


def require(condition: bool, sentence: str) -> None:
    if not condition:
        raise RuntimeError(f"fastard: {sentence}")


def require_like(t: Tensor, like: Tensor, name: str, like_name: str) -> None:
    require(t.shape == like.shape, f"{name} must have {like_name}'s shape.")
    require(t.device == like.device, f"{name} must be on {like_name}'s device.")
    require(t.stride() == like.stride(), f"{name} must have {like_name}'s memory layout.")
