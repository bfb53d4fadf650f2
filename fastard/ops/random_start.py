"""`random_start_`: the start of an attack from given noise."""

from __future__ import annotations

import torch
from torch import Tensor

from fastard import checks, reference
from fastard.kinds import Norm, StartKind, parse_norm
from fastard.ops._backend import dense_samples, detached, implementation, laid_out_like, mutated
from fastard.ops.pgd_step import as_bound

# Dynamo of torch 2.11 cannot look into an enum's members.
_KINDS = {start.name: int(start) for start in StartKind}


def random_start_(
    x_adv: Tensor,
    x: Tensor,
    noise: Tensor,
    eps: float | Tensor = 8 / 255,
    kind: str = "uniform",
    norm: str | float | Norm = "Linf",
    *,
    radius: Tensor | None = None,
    sigma: float = 0.001,
    clip: bool = True,
    clip_min: float = 0.0,
    clip_max: float = 1.0,
) -> Tensor:
    """Writes x plus a start made from `noise` into x_adv.

    Equivalent to:
    ``x_adv.copy_(x + sigma * noise)`` for kind "gaussian" (RSLAD, TRADES: sigma 0.001), and
    ``x_adv.copy_(x + noise * 2 * eps - eps)`` for kind "uniform" in Linf, with noise in [0, 1);
    then ``.clamp(clip_min, clip_max)`` if clip.

    Uniform in L2 takes Gaussian noise and `radius` [B] in [0, 1): noise / ||noise|| * radius * eps.
    Uniform in L1 takes Gaussian noise and projects it onto the ball (and the box, if clip).

    Raises:
        TypeError, ValueError: a dtype, shape, device or value that does not fit, in one sentence.
    """
    ball = parse_norm(norm)
    code = _KINDS.get(kind)
    if code is None:
        raise ValueError(f"kind must be 'uniform' or 'gaussian', but is {kind!r}.")
    checks.floating(x_adv, "x_adv")
    checks.floating(noise, "noise")
    checks.floating(x, "x")
    for t, name in ((x, "x"), (noise, "noise")):
        checks.same_shape(t, x_adv, name, "x_adv")
        checks.same_device(t, x_adv, name, "x_adv")
    if x.dtype != x_adv.dtype:
        raise TypeError(f"x must have x_adv's dtype {x_adv.dtype}, but has {x.dtype}.")
    checks.radius(eps, x, "eps")
    checks.box(clip_min, clip_max)
    if kind == "uniform" and ball == Norm.L2 and (radius is None or radius.shape != (len(x),)):
        raise ValueError(f"radius must be one number per sample [{len(x)}] for an L2 start.")
    if radius is not None:
        radius = checks.floating(radius, "radius").contiguous()
        checks.same_device(radius, x_adv, "radius", "x_adv")

    start = implementation("random_start_", x_adv)
    if start is None:
        with torch.no_grad():
            moved = reference.random_start(
                x, noise, eps, kind, ball.name, radius, sigma, clip, clip_min, clip_max
            )
            x_adv.copy_(moved)
        return x_adv

    out = detached(x_adv)
    gaps = not dense_samples(out)
    if gaps:
        out = out.contiguous()
    rest = (int(ball), code, sigma, clip, clip_min, clip_max)
    x, noise = laid_out_like(detached(x), out), laid_out_like(detached(noise), out)
    if isinstance(eps, Tensor):
        start.Tensor(out, x, noise, radius, as_bound(eps, x), *rest)
    else:
        start.Scalar(out, x, noise, radius, eps, *rest)
    if gaps:
        with torch.no_grad():
            x_adv.copy_(out)
    mutated(x_adv)
    return x_adv
