"""`pgd_step_`: gradient step, projection and box in one pass, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastard import checks, reference
from fastard.kinds import Norm, parse_norm
from fastard.ops._backend import dense_samples, detached, implementation, laid_out_like, mutated


def as_bound(value: float | Tensor, like: Tensor) -> Tensor:
    """eps or alpha as the kernels read it from the device: fp32, or fp64 for fp64 images."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if isinstance(value, Tensor):
        return value.detach().to(like.device, dtype).reshape(-1).contiguous()
    return torch.full((1,), value, dtype=dtype, device=like.device)


def channel_tensor(values: Any, like: Tensor, name: str) -> Tensor:
    """mean or std as the kernels read it: fp32, one per channel, on like's device."""
    channels = like.shape[1] if like.dim() > 1 else 1
    if isinstance(values, Tensor) and values.shape == (channels,) and values.dtype == torch.float32:
        return values.to(like.device).contiguous()
    found = checks.channel_values(values, channels, name)
    return torch.tensor(found, dtype=torch.float32, device=like.device)


def pgd_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: float | Tensor = 8 / 255,
    alpha: float | Tensor = 2 / 255,
    norm: str | float | Norm = "Linf",
    clip_min: float = 0.0,
    clip_max: float = 1.0,
    *,
    l1_sparsity: float = 0.2,
    feed: Tensor | None = None,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Moves x_adv by alpha along the gradient, then into the eps-ball and the box, in place.

    Equivalent to (Linf):
    ``x_adv.copy_((x_adv + alpha * grad.sign()).clamp(x - eps, x + eps).clamp(clip_min, clip_max))``

    L2 moves along grad / (||grad||_2 + 1e-12), projects onto the ball, then the box (AutoAttack).
    L1 moves the `l1_sparsity` share of coordinates with the largest gradient by equal amounts that
    sum to alpha, and projects exactly onto ball and box (APGD-L1, Croce & Hein 2021).

    Args:
        x_adv: [B, ...] fp32, fp64, bf16 or fp16, mutated; Linf in fp32 is bitwise the line above.
        grad: x_adv's shape, any of those dtypes; a NaN moves nothing (L2: nothing of its sample).
        x: the clean images, x_adv's shape and dtype. Tensors in another memory layout than x_adv's
            are copied into it first.
        eps, alpha: radius and step size (alpha) in pixel units; a number, or a tensor of one value
            or one per sample.
        norm: "Linf", "L2", "L1" or an alias.
        feed: a second output, x_adv's shape and layout, any dtype: the model's next input.
        mean, std: one value per channel; `feed` then holds (x_adv - mean) / std.
    Returns:
        x_adv.
    Raises:
        TypeError, ValueError: a dtype, shape, device or value that does not fit, in one sentence.
    """
    kind = parse_norm(norm)
    checks.floating(x_adv, "x_adv")
    checks.floating(grad, "grad")
    checks.floating(x, "x")
    if x_adv.dim() < 1:
        raise ValueError("x_adv must be a batch, but has no dimension.")
    for t, name in ((grad, "grad"), (x, "x")):
        checks.same_shape(t, x_adv, name, "x_adv")
        checks.same_device(t, x_adv, name, "x_adv")
    if x.dtype != x_adv.dtype:
        raise TypeError(f"x must have x_adv's dtype {x_adv.dtype}, but has {x.dtype}.")
    checks.radius(eps, x, "eps")
    checks.radius(alpha, x, "alpha")
    checks.box(clip_min, clip_max)
    if not 0 < l1_sparsity <= 1:
        raise ValueError(f"l1_sparsity must lie in (0, 1], but is {l1_sparsity}.")
    if (mean is None) != (std is None):
        raise ValueError("mean and std go together: give both or neither.")
    means = None if mean is None else channel_tensor(mean, x_adv, "mean")
    stds = None if std is None else channel_tensor(std, x_adv, "std")
    if feed is not None:
        checks.same_shape(checks.floating(feed, "feed"), x_adv, "feed", "x_adv")
        if feed is x_adv:
            raise ValueError("feed must be another tensor than x_adv.")

    step = implementation("pgd_step_", x_adv)
    if step is None:
        with torch.no_grad():
            moved = reference.pgd_step(
                x_adv, grad, x, eps, alpha, kind.name, clip_min, clip_max, l1_sparsity
            )
            x_adv.copy_(moved)
            if feed is not None:
                feed.copy_(reference.feed(x_adv, feed.dtype, means, stds))
        return x_adv

    out = detached(x_adv)
    gaps = not dense_samples(out)
    if gaps:
        out = out.contiguous()
    out_feed = None if feed is None else detached(feed)
    if out_feed is not None and out_feed.stride() != out.stride():
        out_feed = torch.empty_strided(
            out.shape, out.stride(), dtype=out_feed.dtype, device=out.device
        )
    grad, x = laid_out_like(detached(grad), out), laid_out_like(detached(x), out)
    rest = (int(kind), clip_min, clip_max, l1_sparsity, out_feed, means, stds)
    if isinstance(eps, Tensor) or isinstance(alpha, Tensor):
        step.Tensor(out, grad, x, as_bound(eps, x), as_bound(alpha, x), *rest)
    else:
        step.Scalar(out, grad, x, eps, alpha, *rest)
    if gaps:
        with torch.no_grad():
            x_adv.copy_(out)
    if feed is not None and out_feed is not None and out_feed.stride() != feed.stride():
        with torch.no_grad():
            feed.copy_(out_feed)
    mutated(x_adv, feed)
    return x_adv
