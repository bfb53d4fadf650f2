"""The Linf step and the starts that need no norm: elementwise over the whole batch."""

from __future__ import annotations

import triton
import triton.language as tl

from fastard.triton_kernels.formulas import (
    bound,
    clamp,
    first_of,
    number,
    signed_step,
    towards,
    write_step,
)


# Bytes an element, fp32: 12 read (x_adv, grad, x) + 4 written, 14 with a half precision gradient,
# + the second output's. Expected: bound by memory, near the copy bandwidth from 64 MB on.
@triton.jit(do_not_specialize=["eps", "alpha", "lo", "hi"])
def linf_step(
    x_adv, grad, x, feed, mean, std, eps_values, alpha_values, eps, alpha, lo, hi,
    eps_step, alpha_step, total, n, channels, plane,
    ACC: tl.constexpr, APART: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = first_of(tl.program_id(0), BLOCK, WIDE)
    lane = tl.arange(0, BLOCK)
    here = lane < total - start
    v = tl.load(x_adv + start + lane, here, other=0).to(ACC)
    g = tl.load(grad + start + lane, here, other=0).to(ACC)
    c = tl.load(x + start + lane, here, other=0).to(ACC)
    # A sample holds whole rounds of the channels: a place beyond it finds its channel as well.
    place = start % n + lane
    if APART:
        sample = start // n + place // n
        # Lanes beyond the batch read the last sample's values.
        sample = tl.where(here, sample, (total - 1) // n)
        e = bound(eps_values, eps, sample * eps_step, ACC)
        a = bound(alpha_values, alpha, sample * alpha_step, ACC)
    else:
        e, a = bound(eps_values, eps, 0, ACC), bound(alpha_values, alpha, 0, ACC)
    moved = clamp(v + signed_step(g, a), c - e, c + e)
    moved = clamp(moved, number(lo, ACC), number(hi, ACC))
    write_step(x_adv, feed, mean, std, start, lane, here, place, moved, c, channels, plane, ACC)


# Bytes an element, fp32: 8 read (x, noise) + 4 written. Expected: near the copy bandwidth.
@triton.jit(do_not_specialize=["eps", "sigma", "lo", "hi"])
def plain_start(
    x_adv, x, noise, eps_values, eps, sigma, lo, hi, eps_step, total, n,
    ACC: tl.constexpr, GAUSSIAN: tl.constexpr, CLIP: tl.constexpr, APART: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = first_of(tl.program_id(0), BLOCK, WIDE)
    lane = tl.arange(0, BLOCK)
    here = lane < total - start
    c = tl.load(x + start + lane, here, other=0).to(ACC)
    z = tl.load(noise + start + lane, here, other=0).to(ACC)
    if GAUSSIAN:
        moved = c + number(sigma, ACC) * z
    else:
        if APART:
            sample = start // n + (start % n + lane) // n
            sample = tl.where(here, sample, (total - 1) // n)
            e = bound(eps_values, eps, sample * eps_step, ACC)
        else:
            e = bound(eps_values, eps, 0, ACC)
        # Rounded as torch.rand(...) * 2 * eps - eps is.
        moved = c + (z * 2 * e - e)
    if CLIP:
        moved = clamp(moved, number(lo, ACC), number(hi, ACC))
    tl.store(x_adv + start + lane, towards(moved, c, x_adv.dtype.element_ty), here)
