"""Row losses over softmaxes (kl, ce, mixture), rows of up to 4,096 classes held by a program."""

from __future__ import annotations

import triton
import triton.language as tl

from fastard.triton_kernels.formulas import (
    INF,
    checked,
    divide,
    floored_log,
    kl_term,
    number,
    teacher_slope,
)

# The codes of the operator's `kind`.
KL, CE, MIXTURE, MARGIN, DLR = (tl.constexpr(code) for code in range(5))


@triton.jit
def softened(z):
    """Log-probabilities and probabilities of rows of logits; -inf beyond a row."""
    top = tl.max(tl.where(z == z, z, -INF), axis=1)[:, None]
    z = z - top
    q = tl.exp(z)
    total = tl.sum(q, axis=1)[:, None]
    return z - tl.log(total), q * divide(1.0, total)


@triton.jit
def read_rows(values, offset, here, inside, factor, ACC: tl.constexpr):
    return tl.where(inside, tl.load(values + offset, here, other=0).to(ACC) * factor, -INF)


# Bytes a class, kl in fp32: 8 read + 4 written (bf16: half of that), 4 more for the teacher's
# gradient. Expected: bound by memory, 70 to 85 % of the copy bandwidth for 1,000 classes.
@triton.jit(do_not_specialize=["factor", "target_factor", "mix", "floor", "scale"])
def row_losses(
    logits, target, labels, loss, dlogits, dtarget, factor, target_factor, mix, floor, scale, rows,
    ACC: tl.constexpr, KIND: tl.constexpr, FLOORED: tl.constexpr, CLASSES: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)[None, :]
    start = first * CLASSES
    offset = row[:, None] * CLASSES + c
    there = row < rows - first
    inside = c < CLASSES
    here = there[:, None] & inside
    factor, scale = number(factor, ACC), number(scale, ACC)
    z, q = softened(read_rows(logits + start, offset, here, inside, factor, ACC))
    if KIND != CE:
        other = number(target_factor, ACC)
        t, p = softened(read_rows(target + start, offset, here, inside, other, ACC))
    if KIND == KL:
        floor = number(floor, ACC)
        log_p = floored_log(p, t, floor, FLOORED)
        value = tl.sum(kl_term(p, log_p, z), axis=1) * scale
        d = (q - p) * (scale * factor)
        if dtarget is not None:
            slope = teacher_slope(p, log_p, z, floor, FLOORED)
            mean = tl.sum(tl.where(p > 0, p * slope, 0.0), axis=1)[:, None]
            dt = tl.where(p > 0, p * (slope - mean) * (scale * factor), p)
            tl.store(dtarget + start + offset, dt.to(dtarget.dtype.element_ty), here)
    else:
        y, scale = checked(tl.load(labels + first + row, there, other=0), scale, CLASSES)
        hit = c == y[:, None]
        if KIND == CE:
            value = -tl.sum(tl.where(hit, z, 0.0), axis=1) * scale
            d = (q - tl.where(hit, 1.0, 0.0)) * scale[:, None]
        else:
            mix = number(mix, ACC)
            m = p * mix + tl.where(hit, 1 - mix, 0.0)
            value = tl.sum(kl_term(m, 0.0, z), axis=1) * scale
            d = (q - m) * scale[:, None]
    tl.store(loss + first + row, value, there)
    if dlogits is not None:
        tl.store(dlogits + start + offset, d.to(dlogits.dtype.element_ty), here)


# Bytes a row: 4 read. The reduced loss of `distill_kl`: one program, so that the order is fixed.
# Expected: a launch's own time up to about 10^5 rows.
@triton.jit
def total_loss(per_row, loss, rows, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float64)
    for at in range(0, SPAN, BLOCK):
        sums += tl.load(per_row + at + lane, lane < rows - at, other=0).to(tl.float64)
    tl.store(loss, tl.sum(sums).to(loss.dtype.element_ty))
