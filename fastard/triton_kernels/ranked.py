"""Margin and DLR, which depend on a few places of a row only."""

from __future__ import annotations

import triton
import triton.language as tl

from fastard.triton_kernels.formulas import INF, TINY_NORM, checked, divide, greater, number


@triton.jit
def next_place(
    logits, offset, there, a, b, d,
    ACC: tl.constexpr, CLASSES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest logit's place beside a, b and d, the first among equals; NaN ranks last."""
    best = tl.full((ROWS, BLOCK), -INF, ACC)
    where = tl.full((ROWS, BLOCK), CLASSES, tl.int32)
    for at in range(0, CLASSES, BLOCK):
        c = at + tl.arange(0, BLOCK)[None, :]
        z = tl.load(logits + offset + c, there & (c < CLASSES), other=0).to(ACC)
        is_open = (c < CLASSES) & (c != a[:, None]) & (c != b[:, None]) & (c != d[:, None])
        key = tl.where(z == z, z, -INF)
        taken = is_open & ((key > best) | (where == CLASSES))
        best = tl.where(taken, key, best)
        where = tl.where(taken, c, where)
    top = tl.max(best, axis=1)[:, None]
    return tl.min(tl.where(best == top, where, CLASSES), axis=1)


# Bytes a class, fp32: 4 read, up to 16 more from the cache, + 4 written. Expected: a launch's own
# time for a batch of an attack.
@triton.jit(do_not_specialize=["kappa", "scale"])
def ranked_losses(
    logits, labels, goals, loss, dlogits, kappa, scale, rows,
    ACC: tl.constexpr, IS_DLR: tl.constexpr, TARGETED: tl.constexpr, CLASSES: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    present = row < rows - first
    there = present[:, None]
    start = first * CLASSES
    offset = row * CLASSES
    z = logits + start
    y, scale = checked(tl.load(labels + first + row, present, other=0), number(scale, ACC), CLASSES)
    none = tl.full((ROWS,), -1, tl.int32)
    k1 = next_place(z, offset[:, None], there, none, none, none, ACC, CLASSES, ROWS, BLOCK)
    k2 = next_place(z, offset[:, None], there, k1, none, none, ACC, CLASSES, ROWS, BLOCK)
    other = tl.where(k1 == y, k2, k1)
    if IS_DLR and TARGETED:
        other, scale = checked(tl.load(goals + first + row, present, other=0), scale, CLASSES)
    gap = tl.load(z + offset + y, present, other=0).to(ACC)
    gap -= tl.load(z + offset + other, present, other=0).to(ACC)
    k3, k4 = none, none
    if IS_DLR:
        k3 = next_place(z, offset[:, None], there, k1, k2, none, ACC, CLASSES, ROWS, BLOCK)
        tail = tl.load(z + offset + k3, present, other=0).to(ACC)
        share = 1.0
        if TARGETED:
            k4 = next_place(z, offset[:, None], there, k1, k2, k3, ACC, CLASSES, ROWS, BLOCK)
            tail = 0.5 * (tail + tl.load(z + offset + k4, present, other=0).to(ACC))
            share = 0.5
        spread = tl.load(z + offset + k1, present, other=0).to(ACC) - tail + TINY_NORM
        value = -divide(gap, spread)
        slope = divide(scale, spread)
        bend = divide(scale * gap, spread * spread)
        end = bend * share
    else:
        side = -1.0 if TARGETED else 1.0
        reach = side * gap + number(kappa, ACC)
        value = -greater(reach, 0.0)
        slope = tl.where(reach > 0, side * scale, 0.0)
        bend = tl.zeros((ROWS,), ACC)
        end = bend
    tl.store(loss + first + row, value * scale, present)
    # NaN where a label was none.
    begin = tl.where(scale == scale, 0.0, float("nan"))[:, None]
    for at in range(0, CLASSES, BLOCK):
        c = at + tl.arange(0, BLOCK)[None, :]
        d = begin - tl.where(c == y[:, None], slope[:, None], 0.0)
        d += tl.where(c == other[:, None], slope[:, None], 0.0)
        d += tl.where(c == k1[:, None], bend[:, None], 0.0)
        d -= tl.where((c == k3[:, None]) | (c == k4[:, None]), end[:, None], 0.0)
        tl.store(
            dlogits + start + offset[:, None] + c,
            d.to(dlogits.dtype.element_ty),
            there & (c < CLASSES),
        )
