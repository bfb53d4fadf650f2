"""The formulas that the kernels share, as csrc/math.h holds them for CPU and CUDA.

Comparisons and selections, not minimum and maximum, wherever a NaN decides: those differ in what
they make of one.
"""

# ruff: noqa: SIM300 - Triton writes its compile-time constants in upper case

from __future__ import annotations

import triton
import triton.language as tl

TINY_NORM = tl.constexpr(1e-12)  # AutoAttack's guard of ||g||_2 and of DLR's denominator
TINY_COUNT = tl.constexpr(1e-10)  # APGD-L1's guard of the number of moved coordinates
INF = tl.constexpr(float("inf"))


@triton.jit
def number(value, ACC: tl.constexpr):
    """A scalar argument in ACC: Triton hands floats over as fp32, so fp64 comes as its bits."""
    if ACC == tl.float64:
        found = tl.full((), value, tl.int64).to(tl.float64, bitcast=True)
    else:
        found = tl.full((), value, ACC)
    return found


@triton.jit
def bound(values, value, sample, ACC: tl.constexpr):
    """eps or alpha: the argument, or read from the device where `values` is there."""
    if values is None:
        found = number(value, ACC)
    else:
        found = tl.load(values + sample)
    return found


@triton.jit
def divide(a, b):
    """Correctly rounded: `/` is not, in fp32."""
    if b.dtype == tl.float64:
        ratio = a / b
    else:
        ratio = tl.math.div_rn(a, b)
    return ratio


@triton.jit
def root(a):
    if a.dtype == tl.float64:
        found = tl.sqrt(a)
    else:
        found = tl.math.sqrt_rn(a)
    return found


@triton.jit
def greater(a, b):
    return tl.where(a > b, a, b)


@triton.jit
def lesser(a, b):
    return tl.where(a < b, a, b)


@triton.jit
def clamp(v, lo, hi):
    v = tl.where(v < lo, lo, v)
    return tl.where(v > hi, hi, v)


@triton.jit
def signed_step(g, alpha):
    """sign(g) * alpha with sign(NaN) = 0: a NaN gradient moves nothing."""
    return tl.where(g > 0, alpha, tl.where(g < 0, -alpha, 0.0))


@triton.jit
def l2_scale(alpha, norm):
    """What a gradient of this norm is multiplied by: 0 where the norm is not finite."""
    finite = norm - norm == 0
    return tl.where(finite, divide(alpha, tl.where(finite, norm, 1.0) + TINY_NORM), 0.0)


@triton.jit
def towards(v, x, T: tl.constexpr):
    """v in T; a half precision is rounded between v and x, so that ball and box hold it."""
    if (T == tl.float16) or (T == tl.bfloat16):
        nearest = v.to(T)
        r = nearest.to(tl.float32)
        bits = nearest.to(tl.int16, bitcast=True)
        back = tl.where((r > x) == (r > 0), bits - 1, bits + 1)
        back = tl.where(r == 0, tl.where(x > 0, 1, -32767), back).to(tl.int16)
        overshot = tl.abs(r - x) > tl.abs(v - x)
        out = tl.where(overshot, back, bits).to(T, bitcast=True)
    else:
        out = v.to(T)
    return out


@triton.jit
def write_step(
    x_adv, feed, mean, std, start, lane, here, place, value, x, channels, plane, ACC: tl.constexpr
):
    """Stores x_adv and what the model is to see of it: what was stored, normalised and cast.

    `start` counts from the batch's first element, `place` from a sample's.
    """
    stored = towards(value, x, x_adv.dtype.element_ty)
    tl.store(x_adv + start + lane, stored, here)
    if feed is not None:
        seen = stored.to(ACC)
        if mean is not None:
            c = (place // plane) % channels
            seen = divide(seen - tl.load(mean + c).to(ACC), tl.load(std + c).to(ACC))
        tl.store(feed + start + lane, seen.to(feed.dtype.element_ty), here)


@triton.jit
def first_of(program, size, WIDE: tl.constexpr):
    """Where a program's elements begin, in 32 bits where those suffice: 64-bit division is slow."""
    if WIDE:
        program = program.to(tl.int64)
    return program * size


@triton.jit
def kl_term(p, log_p, log_q):
    """One term of KL(p || q): p = 0 contributes nothing, whatever q is."""
    return tl.where(p > 0, p * (log_p - log_q), tl.where(p == p, 0.0, p))


@triton.jit
def floored_log(p, log_p, floor, FLOORED: tl.constexpr):
    if FLOORED:
        log_p = tl.log(p + floor)
    return log_p


@triton.jit
def teacher_slope(p, log_pf, log_q, floor, FLOORED: tl.constexpr):
    """d KL / d teacher logit before the mean is removed: log(p + f) + p / (p + f) - log q."""
    if FLOORED:
        slope = log_pf - log_q + divide(p, p + floor)
    else:
        slope = log_pf - log_q + 1.0
    return slope


@triton.jit
def checked(label, scale, CLASSES: tl.constexpr):
    """A label outside the row becomes 0, and the scale of all of the row's results NaN."""
    fits = (label >= 0) & (label < CLASSES)
    return tl.where(fits, label, 0).to(tl.int32), tl.where(fits, scale, float("nan"))
