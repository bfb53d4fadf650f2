"""Argument checks: each refusal is one sentence: the argument, what it was, what it must be."""

from __future__ import annotations

import math
import numbers
import operator
import warnings

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def describe(t: object) -> str:
    """A tensor as `float32 [128, 10] on cpu`, anything else by its type."""
    if isinstance(t, Tensor):
        return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)} on {t.device}"
    return f"a {type(t).__name__}"


def floating(t: object, name: str) -> Tensor:
    """A tensor of a floating dtype that the kernels take."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, but is {describe(t)}.")
    if t.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be float32, float64, float16 or bfloat16, but is {describe(t)}."
        )
    return t


def same_shape(t: Tensor, like: Tensor, name: str, like_name: str) -> None:
    if t.shape != like.shape:
        raise ValueError(
            f"{name} must have {like_name}'s shape {list(like.shape)}, but has {list(t.shape)}."
        )


def same_device(t: Tensor, like: Tensor, name: str, like_name: str) -> None:
    # Two CPU tensors need no device objects to be compared.
    if not (t.is_cpu and like.is_cpu) and t.device != like.device:
        raise ValueError(
            f"{name} must be on {like_name}'s device {like.device}, but is on {t.device}."
        )


def radius(value: object, x: Tensor | None, name: str) -> None:
    """eps or alpha: one finite number >= 0, or a tensor of one or of one per sample of x."""
    if isinstance(value, Tensor):
        batch = value.numel() if x is None else len(x)
        if value.numel() not in (1, batch) or value.dtype not in FLOATING:
            raise ValueError(
                f"{name} must be a number or a floating tensor of one value or one per sample "
                f"({batch}), but is {describe(value)}."
            )
    elif type(value) is float and 0 <= value < math.inf:
        return
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number or a tensor, but is {describe(value)}.")
    elif not (math.isfinite(value) and float(value) >= 0):
        raise ValueError(f"{name} must be finite and not negative, but is {value}.")


def radius_values(value: float | Tensor, name: str) -> None:
    """The values of a per-sample eps or alpha; synchronises on an accelerator."""
    if isinstance(value, Tensor) and value.numel():
        low, high = torch.aminmax(value.detach())
        if not (low >= 0 and math.isfinite(high)):
            raise ValueError(
                f"{name} must be finite and not negative, but its values span "
                f"[{low.item():g}, {high.item():g}]."
            )


def box(clip_min: float, clip_max: float) -> None:
    number(clip_min, "clip_min")
    number(clip_max, "clip_max")
    if not clip_min < clip_max:
        raise ValueError(f"clip_min must be below clip_max, but they are {clip_min}, {clip_max}.")


def number(value: object, name: str) -> float:
    """A finite real number, numpy's included."""
    # An ABC's isinstance costs as much as a small operator's allocation.
    if type(value) is float and -math.inf < value < math.inf:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, but is {describe(value)}.")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, but is {value}.")
    return float(value)


def steps(value: object, name: str = "steps") -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, but is {describe(value)}.")
    count = operator.index(value)  # type: ignore[arg-type]
    if count < 1:
        raise ValueError(f"{name} must be at least 1, but is {count}.")
    return count


def device(value: object, name: str) -> torch.device | None:
    if value is None or isinstance(value, torch.device):
        return value
    try:
        found = torch.device(value)  # type: ignore[call-overload]
    except (RuntimeError, TypeError):
        raise ValueError(
            f"{name} must name a device like 'cpu' or 'cuda', but is {value!r}."
        ) from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name} is {value!r}, but torch sees no CUDA device.")
    return found


def seed(value: int) -> None:
    """Raises ValueError for a seed without room, in torch's 64 bits, for what is added to it."""
    if not 0 <= value < 2**63:
        raise ValueError(f"seed must be from 0 to 2**63 - 1, but is {value}.")


def generator(value: object) -> None:
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, but is {describe(value)}.")


def in_box(x: Tensor, clip_min: float, clip_max: float) -> None:
    """Finite and inside the box; synchronises on an accelerator."""
    if x.numel() == 0:
        return
    low, high = (v.item() for v in torch.aminmax(x.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("x must be finite, but holds NaN or infinite values.")
    # One rounding: bounds that x's dtype cannot hold, and images that were interpolated.
    slack = torch.finfo(x.dtype).eps * max(abs(clip_min), abs(clip_max))
    if low < clip_min - slack or high > clip_max + slack:
        raise ValueError(
            f"x must lie in [clip_min, clip_max] = [{clip_min:g}, {clip_max:g}], but its values "
            f"span [{low:.8g}, {high:.8g}]; pass images before normalisation, with mean= and std=."
        )


def labels(y: object, batch: int, device: torch.device, name: str = "y") -> Tensor:
    """Class indices, one per sample."""
    if not isinstance(y, Tensor):
        raise TypeError(f"{name} must be a tensor of class indices, but is {describe(y)}.")
    if y.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise TypeError(f"{name} must hold integer class indices, but is {describe(y)}.")
    if y.shape != (batch,):
        raise ValueError(
            f"{name} must have one label per sample [{batch}], but has {list(y.shape)}."
        )
    if y.device != device:
        raise ValueError(f"{name} must be on x's device {device}, but is on {y.device}.")
    return y


def labels_below(y: Tensor, classes: int, name: str = "y") -> None:
    """Labels in [0, classes); synchronises on an accelerator."""
    if y.numel() == 0:
        return
    low, high = (int(v) for v in torch.aminmax(y))
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name} must lie in [0, {classes}) for a model of {classes} classes, but spans "
            f"[{low}, {high}]."
        )


def teacher_logits(t: object, x: Tensor, name: str = "teacher_logits") -> Tensor:
    """Logits [B, C] on x's device."""
    t = floating(t, name)
    if t.dim() != 2 or len(t) != len(x):
        raise ValueError(
            f"{name} must be logits [{len(x)}, classes], one row per sample of x, but is "
            f"{list(t.shape)}."
        )
    same_device(t, x, name, "x")
    return t


def logits_values(t: Tensor, name: str = "teacher_logits") -> None:
    """Finite, and not probabilities; synchronises on an accelerator."""
    if t.numel() == 0:
        return
    t = t.detach().float() if t.dtype != torch.float64 else t.detach()
    low, high = (v.item() for v in torch.aminmax(t))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} must be finite, but holds NaN or infinite values.")
    if t.shape[1] > 1 and low >= 0 and high <= 1 and (t.sum(1) - 1).abs().max().item() < 1e-3:
        warnings.warn(
            f"{name} look like probabilities (rows in [0, 1] that sum to 1); logits are expected, "
            "their softmax is taken here.",
            stacklevel=4,
        )


def model_logits(logits: Tensor) -> None:
    """What a model answers: no NaN, no +inf; synchronises on an accelerator."""
    if logits.numel() and not logits.detach().amax() < math.inf:
        raise ValueError(
            "the model's logits must be finite, but hold NaN or +inf at the attack's start."
        )


def channel_values(values: object, channels: int, name: str) -> list[float]:
    """mean or std: one number per channel, of any shape with one dimension of that length."""
    if isinstance(values, numbers.Real):
        found = [float(values)] * channels
    elif isinstance(values, Tensor):
        found = values.detach().reshape(-1).tolist()
    else:
        found = [number(v, name) for v in values]  # type: ignore[attr-defined]
    if len(found) != channels:
        raise ValueError(
            f"{name} must have one value per channel ({channels}), but has {len(found)}."
        )
    if not all(math.isfinite(v) for v in found):
        raise ValueError(f"{name} must be finite, but is {found}.")
    if name == "std" and any(not v > 0 for v in found):
        raise ValueError(f"std must be positive, but is {found}.")
    return found
