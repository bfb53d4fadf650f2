"""`fab_step_`: what FAB does between two network passes, in one pass of its own, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from fastard import checks, reference_fab
from fastard.kinds import Norm, parse_norm
from fastard.ops._backend import dense_samples, detached, implementation, laid_out_like, mutated


def fab_step_(
    at: Tensor,
    best: Tensor,
    size: Tensor,
    tests: Tensor,
    trying: Tensor,
    x: Tensor,
    grad: Tensor | None,
    gap: Tensor | None,
    fooled: Tensor,
    norm: str | float | Norm = "Linf",
    n_iter: int = 100,
    limit: float = -1.0,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    clip_min: float = 0.0,
    clip_max: float = 1.0,
) -> Tensor:
    """Brings each sample's search for the boundary one network pass further, in place.

    Equivalent to (one sample)::

        if tests == n_iter or size <= limit: return        # its search is over
        if grad is None and not (trying and fooled): return
        tests += trying
        if trying and fooled:                              # beyond the boundary: keep, go back
            if norm(at - x) < size: best, size = at, norm(at - x)
            at, trying = x + (at - x) * beta, False
        elif tests < n_iter:                               # towards it
            d1, d2 = projection(at), projection(x)         # onto the hyperplane, within the box
            alpha = (norm(d1) / (norm(d1) + norm(d2))).clamp(0, alpha_max)
            at = ((at + eta * d1) * (1 - alpha) + (x + eta * d2) * alpha).clamp(clip_min, clip_max)
            trying = True

    The hyperplane is ``gap + (grad * (z - at)).sum() = 0``; where the box does not reach it, every
    coordinate goes as far as it can. What is not finite in grad or gap moves nothing.

    Args:
        at, best, x, grad: [B, ...] fp32 or fp64, of one dtype; at and best are mutated.
        size: [B], at's dtype, mutated: the norm of best - x, large at first.
        tests: [B] int32, mutated: points tested so far.
        trying: [B] bool, mutated: whether `at` is a test, or only the place of a gradient.
        gap: [B], at's dtype: the difference of two logits at `at`, grad its gradient; both None
            after a forward without gradients.
        fooled: [B] bool: whether the model errs at `at`.
        norm: "Linf", "L2", "L1" or an alias.
        n_iter: tests that a sample has.
        limit: the norm at which a sample is done; negative for the smallest.
    Returns:
        at.
    Raises:
        TypeError, ValueError: a dtype, shape, device or value that does not fit, in one sentence.

    Croce & Hein 2020 (arXiv 1907.02044), github.com/fra31/auto-attack, fab_base.py.
    """
    kind = parse_norm(norm)
    _check(at, best, size, tests, trying, x, grad, gap, fooled)
    checks.box(clip_min, clip_max)
    numbers = (n_iter, limit, alpha_max, eta, beta, clip_min, clip_max)
    run = implementation("fab_step_", at)
    state = (at, best, size, tests, trying)
    if run is None:
        with torch.no_grad():
            found = reference_fab.iteration(
                *state, x, grad, gap, fooled, kind.name, n_iter, limit, alpha_max, eta, beta,
                clip_min, clip_max)  # fmt: skip
            for t, value in zip(state, found, strict=True):
                t.copy_(value)
        return at
    images = [detached(t) for t in (at, best)]
    if not (dense_samples(at) and at.stride() == best.stride()):
        images = [t.contiguous() for t in images]
    laid = [None if t is None else laid_out_like(detached(t), images[0]) for t in (x, grad)]
    gap = None if gap is None else detached(gap)
    run(*images, detached(size), tests, trying, *laid, gap, fooled, int(kind), *numbers)
    for t, written in zip((at, best), images, strict=True):
        if written.data_ptr() != t.data_ptr():
            with torch.no_grad():
                t.copy_(written)
    mutated(*state)
    return at


def _check(at: Tensor, best: Tensor, size: Tensor, tests: Tensor, trying: Tensor, x: Tensor,
           grad: Tensor | None, gap: Tensor | None, fooled: Tensor) -> None:  # fmt: skip
    if not isinstance(at, Tensor) or at.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"at must be float32 or float64, but is {checks.describe(at)}.")
    if at.dim() < 1:
        raise ValueError("at must be a batch, but has no dimension.")
    if (grad is None) != (gap is None):
        raise ValueError("grad and gap go together: give both or neither.")
    for name, t in (("best", best), ("x", x), ("grad", grad)):
        if t is None:
            continue
        checks.same_shape(t, at, name, "at")
        checks.same_device(t, at, name, "at")
        if t.dtype != at.dtype:
            raise TypeError(f"{name} must have at's dtype {at.dtype}, but has {t.dtype}.")
    for name, t, dtype in (
        ("size", size, at.dtype), ("tests", tests, torch.int32), ("trying", trying, torch.bool),
        ("gap", gap, at.dtype), ("fooled", fooled, torch.bool),
    ):  # fmt: skip
        if t is None:
            continue
        checks.same_device(t, at, name, "at")
        if t.dtype != dtype or t.shape != at.shape[:1] or not t.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous {str(dtype)[6:]} [{len(at)}], "
                f"but is {checks.describe(t)}."
            )
