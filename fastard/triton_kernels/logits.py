"""The launches of `logit_loss` and `distill_kl`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastard.triton_kernels import long_rows, ranked, rows, tables
from fastard.triton_kernels.call import Call, accumulator, number, require, require_like


def _labels(labels: Tensor | None, logits: Tensor, name: str) -> None:
    if labels is None:
        return
    fits = labels.dtype == torch.int64 and labels.shape == (len(logits),)
    require(fits and labels.is_contiguous() and labels.device == logits.device,
            f"{name} must be one int64 per row on the logits' device.")  # fmt: skip
    # Elsewhere looking at them would synchronise: the kernels make such a row NaN.
    if labels.is_cpu and labels.numel():
        inside = bool(labels.min() >= 0) and bool(labels.max() < logits.shape[1])
        require(inside, "every label must lie in [0, number of classes).")


def _rows(logits: Tensor, loss: Tensor, beside: dict[str, Tensor | None]) -> None:
    require(logits.dim() == 2 and logits.is_contiguous(),
            "logits must be contiguous [rows, classes].")  # fmt: skip
    for name, t in beside.items():
        if t is not None:
            require_like(t, logits, name, "logits")
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    require(loss.is_contiguous() and loss.dtype == wide and loss.device == logits.device,
            "loss must be contiguous float32 (float64 where the logits are).")  # fmt: skip


def _soft(
    logits: Tensor, target: Tensor | None, labels: Tensor | None, kind: int, loss: Tensor,
    dlogits: Tensor | None, dtarget: Tensor | None, temperature: float, mix: float,
    log_floor: float, scale: float,
) -> Call:  # fmt: skip
    count, classes = logits.shape
    factor = 1 / temperature if kind == rows.KL.value else 1.0
    arguments: dict[str, Any] = {
        "logits": logits, "target": target, "labels": labels, "loss": loss, "dlogits": dlogits,
        "dtarget": dtarget, "factor": number(factor, logits),
        "target_factor": number(1 / temperature, logits), "mix": number(mix, logits),
        "floor": number(log_floor, logits), "scale": number(scale, logits),
    }  # fmt: skip
    constants = {
        "ACC": accumulator(logits), "KIND": kind, "FLOORED": log_floor > 0, "CLASSES": classes
    }  # fmt: skip
    held = tables.rows(classes, logits.dtype == torch.float64)
    if held is None:
        block = tables.LONG_ROW
        constants["BLOCK"] = block.size
        return Call(long_rows.long_row_losses, count, block.warps, arguments, constants)
    together, block = held
    constants |= {"ROWS": together, "BLOCK": block.size}
    arguments["rows"] = count
    return Call(rows.row_losses, -(-count // together), block.warps, arguments, constants)


def loss_calls(
    logits: Tensor, target: Tensor | None, labels: Tensor | None, goals: Tensor | None, kind: int,
    targeted: bool, temperature: float, kappa: float, mix: float, scale: float, loss: Tensor,
    dlogits: Tensor, dtarget: Tensor | None,
) -> list[Call]:  # fmt: skip
    _rows(logits, loss, {"target": target, "dlogits": dlogits, "dtarget": dtarget})
    require(loss.numel() == len(logits), "loss must hold one value per row.")
    _labels(labels, logits, "labels")
    _labels(goals, logits, "goals")
    kl, soft = kind == rows.KL.value, kind in (rows.KL.value, rows.MIXTURE.value)
    is_dlr = kind == rows.DLR.value
    require(target is not None or not soft, "this loss needs a target.")
    require(labels is not None or kl, "this loss needs labels.")
    require(goals is not None or not (is_dlr and targeted), "a targeted DLR needs goals.")
    fewest = (4 if targeted else 3) if is_dlr else (2 if kind == rows.MARGIN.value else 1)
    require(logits.shape[1] >= fewest, "this loss needs more classes.")
    if not len(logits):
        return []
    if soft or kind == rows.CE.value:
        towards = -scale if targeted else scale
        return [_soft(logits, target, labels, kind, loss, dlogits, dtarget if kl else None,
                      temperature, mix, 0.0, towards)]  # fmt: skip
    count, classes = logits.shape
    arguments: dict[str, Any] = {
        "logits": logits, "labels": labels, "goals": goals, "loss": loss, "dlogits": dlogits,
        "kappa": number(kappa, logits), "scale": number(scale, logits), "rows": count,
    }  # fmt: skip
    block = tables.RANKED
    size = min(tables.power_of_2(classes), block.size)
    together = block.size // size
    constants = {
        "ACC": accumulator(logits), "IS_DLR": is_dlr, "TARGETED": targeted, "CLASSES": classes,
        "ROWS": together, "BLOCK": size,
    }  # fmt: skip
    programs = -(-count // together)
    return [Call(ranked.ranked_losses, programs, block.warps, arguments, constants)]


def distill_calls(
    student: Tensor, teacher: Tensor, temperature: float, log_floor: float, scale: float,
    loss: Tensor, dstudent: Tensor | None, dteacher: Tensor | None, partials: Tensor | None,
    ticket: Tensor | None,
) -> list[Call]:  # fmt: skip
    """`ticket` serves the compiled kernel, which reduces the loss without a second launch."""
    _rows(student, loss, {"teacher": teacher, "dstudent": dstudent, "dteacher": dteacher})
    count, summed = len(student), loss.dim() == 0
    require(summed or loss.numel() == count, "loss must be 0-dim or hold one value per row.")
    per_row = _room(partials, student) if summed else loss
    calls = []
    if count:
        calls.append(_soft(student, teacher, None, rows.KL.value, per_row, dstudent, dteacher,
                           temperature, 0.0, log_floor, scale))  # fmt: skip
    if summed:
        arguments = {"per_row": per_row, "loss": loss, "rows": count}
        size, warps = tables.TOTAL
        constants = {"SPAN": max(tables.power_of_2(count), size), "BLOCK": size}
        calls.append(Call(rows.total_loss, 1, warps, arguments, constants))
    return calls


def _room(partials: Tensor | None, student: Tensor) -> Tensor:
    if partials is None or partials.shape != (len(student),) or partials.dtype != torch.float64:
        raise RuntimeError("fastard: partials must hold one float64 per row.")
    require(partials.is_contiguous() and partials.device == student.device,
            "partials must be contiguous on the logits' device.")  # fmt: skip
    return partials
