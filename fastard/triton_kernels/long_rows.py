"""Row losses over softmaxes for rows that no program holds: a program a row, online softmax."""

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
from fastard.triton_kernels.rows import CE, KL


@triton.jit
def read(values, at, factor, CLASSES: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    c = at + tl.arange(0, BLOCK)
    v = tl.load(values + c, c < CLASSES, other=0).to(ACC) * factor
    return tl.where(c < CLASSES, v, -INF)


@triton.jit
def normaliser(values, factor, CLASSES: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """A row's largest logit, the sum of exp(logit - largest) inverted, and its logarithm.

    Every lane keeps its own maximum: no reduction until the end. -inf adds nothing, NaN and +inf
    make the sum NaN.
    """
    top = tl.full((BLOCK,), -INF, ACC)
    total = tl.zeros((BLOCK,), ACC)
    for at in range(0, CLASSES, BLOCK):
        v = read(values, at, factor, CLASSES, ACC, BLOCK)
        most = tl.where(v > top, v, top)
        total = tl.where(most > top, total * tl.exp(top - most), total)
        total += tl.where(v == -INF, 0.0, tl.exp(v - most))
        top = most
    largest = tl.max(top)
    total = tl.sum(tl.where(top == largest, total, total * tl.exp(top - largest)))
    return largest, divide(1.0, total), tl.log(total)


# Bytes a class, kl in fp32: 16 read, the last 8 from the L2 cache, + 4 written; the teacher's
# gradient reads 8 from the cache and writes 4 more. Expected: 50 % of the copy bandwidth or more.
@triton.jit(do_not_specialize=["factor", "target_factor", "mix", "floor", "scale"])
def long_row_losses(
    logits, target, labels, loss, dlogits, dtarget, factor, target_factor, mix, floor, scale,
    ACC: tl.constexpr, KIND: tl.constexpr, FLOORED: tl.constexpr, CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start = row * CLASSES
    factor, scale = number(factor, ACC), number(scale, ACC)
    floor, mix = number(floor, ACC), number(mix, ACC)
    top_z, share_z, log_z = normaliser(logits + start, factor, CLASSES, ACC, BLOCK)
    if KIND != CE:
        other = number(target_factor, ACC)
        top_t, share_t, log_t = normaliser(target + start, other, CLASSES, ACC, BLOCK)
    y = 0
    if KIND != KL:
        y, scale = checked(tl.load(labels + row), scale, CLASSES)
    losses = tl.zeros((BLOCK,), ACC)
    means = tl.zeros((BLOCK,), ACC)
    for at in range(0, CLASSES, BLOCK):
        c = at + tl.arange(0, BLOCK)
        z = read(logits + start, at, factor, CLASSES, ACC, BLOCK) - top_z
        q = tl.exp(z) * share_z
        z = z - log_z
        hit = tl.where(c == y, 1.0, 0.0)
        if KIND == CE:
            losses -= tl.where(c == y, z, 0.0)
            d = (q - hit) * scale
        else:
            t = read(target + start, at, other, CLASSES, ACC, BLOCK) - top_t
            p = tl.exp(t) * share_t
            if KIND == KL:
                log_p = floored_log(p, t - log_t, floor, FLOORED)
                losses += kl_term(p, log_p, z)
                d = (q - p) * (scale * factor)
                if dtarget is not None:
                    slope = teacher_slope(p, log_p, z, floor, FLOORED)
                    means += tl.where(p > 0, p * slope, 0.0)
            else:
                m = p * mix + tl.where(c == y, 1 - mix, 0.0)
                losses += kl_term(m, 0.0, z)
                d = (q - m) * scale
        if dlogits is not None:
            tl.store(dlogits + start + c, d.to(dlogits.dtype.element_ty), c < CLASSES)
    tl.store(loss + row, tl.sum(losses) * scale)
    if dtarget is not None:
        mean = tl.sum(means)
        for at in range(0, CLASSES, BLOCK):
            c = at + tl.arange(0, BLOCK)
            z = read(logits + start, at, factor, CLASSES, ACC, BLOCK) - top_z - log_z
            t = read(target + start, at, other, CLASSES, ACC, BLOCK) - top_t
            p = tl.exp(t) * share_t
            slope = teacher_slope(p, floored_log(p, t - log_t, floor, FLOORED), z, floor, FLOORED)
            dt = tl.where(p > 0, p * (slope - mean) * (scale * factor), p)
            tl.store(dtarget + start + c, dt.to(dtarget.dtype.element_ty), c < CLASSES)
