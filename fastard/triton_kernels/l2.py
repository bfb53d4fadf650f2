"""The L2 step and the uniform start in the L2 ball.

A sample that a program's registers hold is read once. A larger one is shared by several programs
in two launches: the first sums inner products over its parts, the second reads it again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastard.triton_kernels.formulas import (
    TINY_NORM,
    bound,
    clamp,
    divide,
    first_of,
    l2_scale,
    lesser,
    number,
    root,
    towards,
    write_step,
)


@triton.jit
def factors(gg, gd, dd, eps, alpha):
    """What the gradient is multiplied by, and what shrinks the displacement into the ball."""
    scale = l2_scale(alpha, root(gg))
    # ||d + s g||^2 from the three sums: no second reduction. A cancelling sum is small beside
    # ||d||^2, far inside the ball, where nothing is shrunk.
    moved = tl.where(scale == 0, dd, dd + scale * (2 * gd + scale * gg))
    moved = tl.where(moved > 0, moved, 0.0)
    return scale, lesser(divide(eps, root(moved) + TINY_NORM), 1.0)


@triton.jit
def moved_by(v, g, c, scale, shrink, lo, hi):
    # A gradient of which no finite multiple is taken contributes nothing (0 * inf would be NaN).
    d = tl.where(scale == 0, v, v + scale * g) - c
    return clamp(c + d * shrink, lo, hi)


# Bytes an element, fp32: 12 read + 4 written, once. Expected: 80 % of the copy bandwidth where
# the batch fills the multiprocessors.
@triton.jit(do_not_specialize=["eps", "alpha", "lo", "hi"])
def l2_step(
    x_adv, grad, x, feed, mean, std, eps_values, alpha_values, eps, alpha, lo, hi,
    eps_step, alpha_step, n, channels, plane, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    start = sample * n
    lane = tl.arange(0, BLOCK)
    here = lane < n
    v = tl.load(x_adv + start + lane, here, other=0).to(ACC)
    g = tl.load(grad + start + lane, here, other=0).to(ACC)
    c = tl.load(x + start + lane, here, other=0).to(ACC)
    d = v - c
    scale, shrink = factors(
        tl.sum(g * g), tl.sum(g * d), tl.sum(d * d),
        bound(eps_values, eps, sample * eps_step, ACC),
        bound(alpha_values, alpha, sample * alpha_step, ACC),
    )  # fmt: skip
    moved = moved_by(v, g, c, scale, shrink, number(lo, ACC), number(hi, ACC))
    write_step(x_adv, feed, mean, std, start, lane, here, lane, moved, c, channels, plane, ACC)


# Bytes an element, fp32: 12 read. Writes three sums a part; STEP = False needs the first only.
@triton.jit
def l2_sums(
    x_adv, grad, x, sums, n, parts,
    ACC: tl.constexpr, STEP: tl.constexpr, WIDE: tl.constexpr, PART: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    first = first_of(program % parts, PART, WIDE)
    start = (program // parts).to(tl.int64) * n + first
    gg = tl.zeros((BLOCK,), ACC)
    gd = tl.zeros((BLOCK,), ACC)
    dd = tl.zeros((BLOCK,), ACC)
    for at in range(0, PART, BLOCK):
        lane = tl.arange(0, BLOCK)
        here = lane < n - first - at
        g = tl.load(grad + start + at + lane, here, other=0).to(ACC)
        gg += g * g
        if STEP:
            v = tl.load(x_adv + start + at + lane, here, other=0).to(ACC)
            c = tl.load(x + start + at + lane, here, other=0).to(ACC)
            d = v - c
            gd += g * d
            dd += d * d
    sums += program.to(tl.int64) * 3
    tl.store(sums, tl.sum(gg))
    tl.store(sums + 1, tl.sum(gd))
    tl.store(sums + 2, tl.sum(dd))


@triton.jit
def summed(sums, sample, parts, which: tl.constexpr, PARTS: tl.constexpr):
    part = tl.arange(0, PARTS)
    return tl.sum(tl.load(sums + (sample * parts + part) * 3 + which, part < parts, other=0))


# Bytes an element, fp32: 12 read + 4 written. Samples go last to first: the L2 cache still holds
# those that `l2_sums` read last. Expected: 60 to 80 % of the copy bandwidth.
@triton.jit(do_not_specialize=["eps", "alpha", "lo", "hi"])
def l2_move(
    x_adv, grad, x, feed, mean, std, sums, eps_values, alpha_values, eps, alpha, lo, hi,
    eps_step, alpha_step, n, channels, plane, parts,
    ACC: tl.constexpr, WIDE: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    sample = (program // parts).to(tl.int64)
    first = first_of(program % parts, PART, WIDE)
    start = sample * n + first
    scale, shrink = factors(
        summed(sums, sample, parts, 0, PARTS), summed(sums, sample, parts, 1, PARTS),
        summed(sums, sample, parts, 2, PARTS),
        bound(eps_values, eps, sample * eps_step, ACC),
        bound(alpha_values, alpha, sample * alpha_step, ACC),
    )  # fmt: skip
    for at in range(0, PART, BLOCK):
        lane = tl.arange(0, BLOCK)
        here = lane < n - first - at
        v = tl.load(x_adv + start + at + lane, here, other=0).to(ACC)
        g = tl.load(grad + start + at + lane, here, other=0).to(ACC)
        c = tl.load(x + start + at + lane, here, other=0).to(ACC)
        moved = moved_by(v, g, c, scale, shrink, number(lo, ACC), number(hi, ACC))
        place = first + at + lane
        write_step(
            x_adv, feed, mean, std, start + at, lane, here, place, moved, c, channels, plane, ACC
        )


# Bytes an element, fp32: 8 read (x, noise) + 4 written, after the 4 that `l2_sums` reads.
@triton.jit(do_not_specialize=["eps", "lo", "hi"])
def l2_start(
    x_adv, x, noise, radius, sums, eps_values, eps, lo, hi, eps_step, n, parts,
    ACC: tl.constexpr, CLIP: tl.constexpr, WIDE: tl.constexpr, PART: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    sample = (program // parts).to(tl.int64)
    first = first_of(program % parts, PART, WIDE)
    start = sample * n + first
    size = tl.load(radius + sample).to(ACC) * bound(eps_values, eps, sample * eps_step, ACC)
    scale = l2_scale(size, root(summed(sums, sample, parts, 0, PARTS)))
    for at in range(0, PART, BLOCK):
        lane = tl.arange(0, BLOCK)
        here = lane < n - first - at
        c = tl.load(x + start + at + lane, here, other=0).to(ACC)
        z = tl.load(noise + start + at + lane, here, other=0).to(ACC)
        moved = c + scale * z
        if CLIP:
            moved = clamp(moved, number(lo, ACC), number(hi, ACC))
        tl.store(x_adv + start + at + lane, towards(moved, c, x_adv.dtype.element_ty), here)
