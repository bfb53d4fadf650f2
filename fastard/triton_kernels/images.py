"""The launches of `pgd_step_` and `random_start_`."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from fastard.triton_kernels import l1, l2, linf, tables
from fastard.triton_kernels.call import Call, accumulator, bound, number, require, require_like

LINF, L2, L1 = range(3)  # the codes of the operators' `norm`
UNIFORM, GAUSSIAN = range(2)  # and of `kind`
NARROW = 1 << 30  # elements whose places, and a block's more, 32 bits count
UNBOUNDED = 1e30  # a box that no displacement can reach


def _channels(t: Tensor, n: int) -> dict[str, int]:
    """Element i of a sample belongs to channel (i // plane) % channels."""
    channels = t.shape[1] if t.dim() > 1 else 1
    return {"channels": channels, "plane": t.stride(1) if channels > 1 else n}


def _reads(name: str, value: float | Tensor, x: Tensor) -> dict[str, Any]:
    if isinstance(value, Tensor):
        fits = value.numel() in (1, len(x)) and value.is_contiguous()
        require(fits, f"{name} must hold one value or one per sample, contiguous.")
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        require(value.dtype == wide, f"{name} must be float32 (float64 where x is).")
        require(value.device == x.device, f"{name} must be on x_adv's device.")
    return bound(value, name, x)


def _apart(arguments: dict[str, Any]) -> bool:
    return any(arguments[key] for key in ("eps_step", "alpha_step") if key in arguments)


def step_calls(
    x_adv: Tensor, grad: Tensor, x: Tensor, eps: float | Tensor, alpha: float | Tensor, norm: int,
    clip_min: float, clip_max: float, l1_sparsity: float, feed: Tensor | None,
    mean: Tensor | None, std: Tensor | None,
) -> list[Call]:  # fmt: skip
    for t, name in ((grad, "grad"), (x, "x"), (feed, "feed")):
        if t is not None:
            require_like(t, x_adv, name, "x_adv")
    require(x.dtype == x_adv.dtype, "x must have x_adv's dtype.")
    require((mean is None) == (std is None), "mean and std go together.")
    if not x_adv.numel():
        return []
    batch, n = len(x_adv), x_adv.numel() // len(x_adv)
    acc = accumulator(x)
    arguments = {
        "x_adv": x_adv, "grad": grad, "x": x, "feed": feed, "mean": mean, "std": std,
        **_reads("eps", eps, x), **_reads("alpha", alpha, x),
        "lo": number(clip_min, x), "hi": number(clip_max, x), "n": n, **_channels(x_adv, n),
    }  # fmt: skip
    if norm == LINF:
        block = tables.elementwise(x_adv.numel(), x_adv.element_size())
        constants = {
            "ACC": acc, "APART": _apart(arguments), "WIDE": x_adv.numel() > NARROW
        }  # fmt: skip
        arguments["total"] = x_adv.numel()
        return [_call(linf.linf_step, x_adv.numel(), block, arguments, constants)]
    if norm == L1:
        skipped = min(max(int((1 - l1_sparsity) * n), 0), n - 1)
        return [_projection(arguments, batch, n - skipped, x)]
    holding = tables.held(n)
    if holding is not None:
        constants = {"ACC": acc, "BLOCK": holding.size}
        return [Call(l2.l2_step, batch, holding.warps, arguments, constants)]
    shared, constants = _shared(x, batch, n)
    programs = batch * shared["parts"]
    return [
        _summing(x_adv, grad, x, batch, shared, constants),
        Call(l2.l2_move, programs, tables.SHARED.warps, arguments | shared, constants),
    ]


def start_calls(
    x_adv: Tensor, x: Tensor, noise: Tensor, radius: Tensor | None, eps: float | Tensor, norm: int,
    kind: int, sigma: float, clip: bool, clip_min: float, clip_max: float,
) -> list[Call]:  # fmt: skip
    for t, name in ((x, "x"), (noise, "noise")):
        require_like(t, x_adv, name, "x_adv")
    require(x.dtype == x_adv.dtype, "x must have x_adv's dtype.")
    if not x_adv.numel():
        return []
    batch, n = len(x_adv), x_adv.numel() // len(x_adv)
    acc = accumulator(x)
    arguments = {
        "x_adv": x_adv, "x": x, "noise": noise, **_reads("eps", eps, x),
        "lo": number(clip_min, x), "hi": number(clip_max, x), "n": n,
    }  # fmt: skip
    if kind == GAUSSIAN or norm == LINF:
        block = tables.elementwise(x_adv.numel(), x_adv.element_size())
        arguments |= {"sigma": number(sigma, x), "total": x_adv.numel()}
        constants = {
            "ACC": acc, "GAUSSIAN": kind == GAUSSIAN, "CLIP": clip, "APART": _apart(arguments),
            "WIDE": x_adv.numel() > NARROW,
        }  # fmt: skip
        return [_call(linf.plain_start, x_adv.numel(), block, arguments, constants)]
    if norm == L1:
        box = (clip_min, clip_max) if clip else (-UNBOUNDED, UNBOUNDED)
        arguments |= {
            "grad": arguments.pop("noise"), "feed": None, "mean": None, "std": None,
            **bound(0.0, "alpha", x), "lo": number(box[0], x), "hi": number(box[1], x),
            **_channels(x_adv, n),
        }  # fmt: skip
        return [_projection(arguments, batch, 0, x)]
    fits = radius is not None and radius.shape == (batch,) and radius.is_contiguous()
    require(fits and radius.device == x.device,  # type: ignore[union-attr]
            "radius must hold one value per sample on x_adv's device.")  # fmt: skip
    shared, constants = _shared(x, batch, n)
    arguments |= {**shared, "radius": radius}
    moving = {**constants, "CLIP": clip}
    return [
        _summing(None, noise, None, batch, shared, constants),
        Call(l2.l2_start, batch * shared["parts"], tables.SHARED.warps, arguments, moving),
    ]


def _call(
    kernel: Any, total: int, block: tables.Block, arguments: dict[str, Any],
    constants: dict[str, Any],
) -> Call:  # fmt: skip
    constants = {**constants, "BLOCK": block.size}
    return Call(kernel, -(-total // block.size), block.warps, arguments, constants)


def _projection(arguments: dict[str, Any], batch: int, k: int, x: Tensor) -> Call:
    """The L1 step of the k largest gradients, or where k is 0 the start from noise."""
    wide = x.dtype == torch.float64
    block = tables.held(arguments["n"]) or tables.REREAD[8 if wide else 4]
    constants = {
        "ACC": accumulator(x), "KEY": tl.int64 if wide else tl.int32, "STEP": k > 0,
        "SPAN": -(-arguments["n"] // block.size) * block.size, "BLOCK": block.size,
    }  # fmt: skip
    close = number(1e-14 if wide else 1e-7, x)
    return Call(
        l1.l1_project, batch, block.warps, {**arguments, "k": k, "tolerance": close}, constants
    )


def _shared(x: Tensor, batch: int, n: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Room for the parts' sums, the parts, and the constants of the kernel that reads them."""
    part, count = tables.parts(n)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    sums = torch.empty(batch * count * 3, dtype=wide, device=x.device)
    constants = {
        "ACC": accumulator(x), "PART": part, "PARTS": tables.power_of_2(count),
        "WIDE": n > NARROW, "BLOCK": tables.SHARED.size,
    }  # fmt: skip
    return {"sums": sums, "parts": count}, constants


def _summing(
    x_adv: Tensor | None, grad: Tensor, x: Tensor | None, batch: int, shared: dict[str, Any],
    constants: dict[str, Any],
) -> Call:  # fmt: skip
    arguments = {"x_adv": x_adv, "grad": grad, "x": x, "n": grad.numel() // batch, **shared}
    constants = {k: v for k, v in constants.items() if k != "PARTS"} | {"STEP": x is not None}
    return Call(l2.l2_sums, batch * shared["parts"], tables.SHARED.warps, arguments, constants)
