"""The L1 step and start: exact projection onto ball and box, both thresholds searched unsorted.

One program a sample. Up to 4,096 elements it holds the sample in registers, and SPAN, whole blocks
that cover it, is one BLOCK; a larger one it reads again in every pass. A sample is a gradient or
noise g, then displacements u with their room in the box.
"""

# ruff: noqa: SIM300 - Triton writes its compile-time constants in upper case

from __future__ import annotations

import triton
import triton.language as tl

from fastard.triton_kernels.formulas import (
    TINY_COUNT,
    bound,
    clamp,
    divide,
    greater,
    lesser,
    number,
    signed_step,
    write_step,
)


@triton.jit
def ranks(g, KEY: tl.constexpr):
    """|g| as the integer of its bits, which order alike; NaN and -0 rank as 0."""
    return tl.abs(tl.where(g == g, g, 0.0)).to(KEY, bitcast=True)


@triton.jit
def read(values, start, at, n, ACC: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    return tl.load(values + start + at + lane, lane < n - at, other=0).to(ACC)


@triton.jit
def at_least(
    least, keys, grad, start, n,
    ACC: tl.constexpr, KEY: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many keys are `least` (> 0) or more."""
    if SPAN == BLOCK:
        count = tl.sum((keys >= least).to(tl.int32))
    else:
        hits = tl.zeros((BLOCK,), tl.int32)
        for at in range(0, SPAN, BLOCK):
            hits += (ranks(read(grad, start, at, n, ACC, BLOCK), KEY) >= least).to(tl.int32)
        count = tl.sum(hits)
    return count


@triton.jit
def kth_largest(
    k, keys, grad, start, n,
    ACC: tl.constexpr, KEY: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The k-th largest key, bit by bit from the top."""
    threshold = tl.full((), 0, KEY)
    bit = tl.full((), 1 << (62 if KEY == tl.int64 else 30), KEY)
    while bit > 0:
        candidate = threshold | bit
        count = at_least(candidate, keys, grad, start, n, ACC, KEY, SPAN, BLOCK)
        threshold = tl.where(count >= k, candidate, threshold)
        bit = tl.where(count == k, 0, bit >> 1)
    return threshold


@triton.jit
def displaced(v, g, c, threshold, step, lo, hi, KEY: tl.constexpr, STEP: tl.constexpr):
    """u, and its room inside the box."""
    if STEP:
        u = v + tl.where(ranks(g, KEY) >= threshold, signed_step(g, step), 0.0) - c
    else:
        u = g
    return u, tl.where(u > 0, hi - c, c - lo)


@triton.jit
def read_displaced(
    x_adv, grad, x, start, at, n, threshold, step, lo, hi,
    ACC: tl.constexpr, KEY: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """u, room and x; zeros, which no pass counts, beyond the sample."""
    g = read(grad, start, at, n, ACC, BLOCK)
    c = read(x, start, at, n, ACC, BLOCK)
    v = c
    if STEP:
        v = read(x_adv, start, at, n, ACC, BLOCK)
    u, room = displaced(v, g, c, threshold, step, lo, hi, KEY, STEP)
    return u, tl.where(tl.arange(0, BLOCK) < n - at, room, 0.0), c


@triton.jit
def shrunk(u, room, lam):
    """|u| after the soft threshold lam, within its room."""
    return lesser(greater(tl.abs(u) - lam, 0.0), room)


@triton.jit
def following(u, room, lam):
    """Whether |u| still shrinks as lam grows."""
    size = tl.abs(u)
    return (size > lam) & (size - lam < room)


@triton.jit
def l1_mass(
    lam, u, room, x_adv, grad, x, start, n, threshold, step, lo, hi, ACC: tl.constexpr,
    KEY: tl.constexpr, STEP: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of shrunk sizes at lam, how many of them follow lam, and the largest |u|."""
    if SPAN == BLOCK:
        mass = tl.sum(shrunk(u, room, lam))
        active = tl.sum(following(u, room, lam).to(tl.int32))
        most = tl.max(tl.abs(u))
    else:
        masses = tl.zeros((BLOCK,), ACC)
        counts = tl.zeros((BLOCK,), tl.int32)
        sizes = tl.zeros((BLOCK,), ACC)
        for at in range(0, SPAN, BLOCK):
            u, room, c = read_displaced(
                x_adv, grad, x, start, at, n, threshold, step, lo, hi, ACC, KEY, STEP, BLOCK
            )
            masses += shrunk(u, room, lam)
            counts += following(u, room, lam).to(tl.int32)
            sizes = greater(sizes, tl.abs(u))
        mass, active, most = tl.sum(masses), tl.sum(counts), tl.max(sizes)
    return mass, active, most


# Bytes an element, fp32: 12 read + 4 written, once where the sample is held; else the gradient's 4
# in each of up to 31 counting passes and 12 in each of Newton's 5 to 10, mostly from the L2 cache.
# Expected: bound by the passes' reductions, about a fifth of the copy bandwidth for 3x32x32.
@triton.jit(do_not_specialize=["eps", "alpha", "lo", "hi", "tolerance", "k"])
def l1_project(
    x_adv, grad, x, feed, mean, std, eps_values, alpha_values, eps, alpha, lo, hi, tolerance,
    eps_step, alpha_step, k, n, channels, plane, ACC: tl.constexpr, KEY: tl.constexpr,
    STEP: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    start = sample * n
    lane = tl.arange(0, BLOCK)
    lo, hi = number(lo, ACC), number(hi, ACC)
    eps = bound(eps_values, eps, sample * eps_step, ACC)
    g = tl.zeros((BLOCK,), ACC)
    if SPAN == BLOCK:
        g = read(grad, start, 0, n, ACC, BLOCK)
    keys = ranks(g, KEY)
    threshold = tl.full((), 0, KEY)
    step = tl.full((), 0, ACC)
    if STEP:
        threshold = kth_largest(k, keys, grad, start, n, ACC, KEY, SPAN, BLOCK)
        # Zeros, ranked or not, do not move.
        reached = tl.where(threshold > 1, threshold, 1)
        count = at_least(reached, keys, grad, start, n, ACC, KEY, SPAN, BLOCK).to(ACC)
        alpha = bound(alpha_values, alpha, sample * alpha_step, ACC)
        step = divide(alpha, count + TINY_COUNT)
    u = g
    room = g
    if SPAN == BLOCK:
        u, room, c = read_displaced(
            x_adv, grad, x, start, 0, n, threshold, step, lo, hi, ACC, KEY, STEP, BLOCK
        )

    # lam with sum min(max(|u| - lam, 0), room) = eps: Newton's step, exact once no kink lies
    # between, guarded by bisection.
    mass, active, above = l1_mass(
        0.0, u, room, x_adv, grad, x, start, n, threshold, step, lo, hi,
        ACC, KEY, STEP, SPAN, BLOCK)  # fmt: skip
    close = eps * number(tolerance, ACC)
    searching = mass > eps
    above = tl.where(searching, above, 0.0)
    below = tl.full((), 0, ACC)
    lam = below
    while searching:
        newton = lam + divide(mass - eps, tl.where(active > 0, active, 1).to(ACC))
        inside = (active > 0) & (newton > below) & (newton < above)
        tried = tl.where(inside, newton, below + (above - below) * 0.5)
        # Neighbouring numbers have none between: the upper one keeps the ball.
        searching = (tried > below) & (tried < above)
        if searching:
            lam = tried
            mass, active, most = l1_mass(
                lam, u, room, x_adv, grad, x, start, n, threshold, step, lo, hi,
                ACC, KEY, STEP, SPAN, BLOCK)  # fmt: skip
            outside = mass > eps
            below = tl.where(outside, lam, below)
            above = tl.where(outside, above, lam)
            searching = outside | (eps - mass > close)

    for at in range(0, SPAN, BLOCK):
        here = lane < n - at
        c = read(x, start, at, n, ACC, BLOCK)
        if SPAN > BLOCK:
            u, room, c = read_displaced(
                x_adv, grad, x, start, at, n, threshold, step, lo, hi, ACC, KEY, STEP, BLOCK
            )
        kept = shrunk(u, room, above)
        moved = clamp(c + tl.where(u < 0, -kept, kept), lo, hi)
        place = at + lane
        write_step(
            x_adv, feed, mean, std, start + at, lane, here, place, moved, c, channels, plane, ACC
        )
