"""Every op in plain PyTorch: the specification, the tests' oracle, the last fallback.

Nothing here mutates its arguments. Half precisions are computed in fp32, fp64 in fp64; where x
is in half precision, results are rounded towards x, so that ball and box hold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastard.shapes import per_channel

TINY_NORM = 1e-12
TINY_COUNT = 1e-10

Bound = float | Tensor  # one value, or one per sample


def widened(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def per_sample(value: Bound, like: Tensor) -> Bound:
    """A per-sample value shaped to broadcast over `like`."""
    if not isinstance(value, Tensor):
        return value
    return value.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def rows_norm(t: Tensor) -> Tensor:
    return per_sample(t.flatten(1).norm(dim=1), t)  # type: ignore[return-value]


def round_towards(v: Tensor, x: Tensor) -> Tensor:
    """v in x's half precision, each value between v and x."""
    nearest = v.to(x.dtype)
    overshot = (nearest.float() - x.float()).abs() > (v - x.float()).abs()
    bits = nearest.view(torch.int16)
    down = (nearest > x) == (nearest > 0)
    back = torch.where(down, bits - 1, bits + 1)
    from_zero = torch.where(x > 0, 1, -32767).to(torch.int16)
    back = torch.where(nearest == 0, from_zero, back)
    return torch.where(overshot, back, bits).view(x.dtype)


def l1_threshold(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """lambda [B] with sum_i min(max(size_i - lambda, 0), room_i) = eps, 0 where it is below eps."""
    size, room, eps = size.double(), room.double(), eps.double()
    points = torch.cat([(size - room).clamp(min=0), size], 1)
    points, order = points.sort(1)
    change = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1)
    active = change.gather(1, order).cumsum(1)
    fallen = (active[:, :-1] * points.diff(dim=1)).cumsum(1)
    mass = torch.minimum(size, room).sum(1, keepdim=True) - torch.nn.functional.pad(fallen, (1, 0))
    before = ((mass > eps[:, None]).sum(1, keepdim=True) - 1).clamp(min=0)
    slope = active.gather(1, before).clamp(min=1)
    found = points.gather(1, before) + (mass.gather(1, before) - eps[:, None]) / slope
    return torch.where(mass[:, :1] <= eps[:, None], 0.0, found).squeeze(1)


def project_l1(u: Tensor, x: Tensor, eps: Bound, clip_min: float, clip_max: float) -> Tensor:
    """x plus the projection of u onto the L1 ball and the box around x, exactly."""
    shape, u, x = u.shape, u.flatten(1), x.flatten(1)
    room = torch.where(u > 0, clip_max - x, x - clip_min)
    radius = torch.as_tensor(eps, dtype=u.dtype, device=u.device).reshape(-1).expand(len(u))
    lam = l1_threshold(u.abs(), room, radius).to(u.dtype)[:, None]
    kept = torch.minimum((u.abs() - lam).clamp(min=0), room)
    return (x + torch.where(u < 0, -kept, kept)).clamp(clip_min, clip_max).reshape(shape)


def l1_direction(grad: Tensor, l1_sparsity: float) -> Tensor:
    """The sign of the largest `l1_sparsity` share of gradients, of L1 norm 1 (APGD-L1)."""
    key = grad.abs().nan_to_num(nan=0.0, posinf=float("inf")).flatten(1)
    n = key.shape[1]
    skipped = min(max(int((1 - l1_sparsity) * n), 0), n - 1)
    threshold = key.sort(1)[0][:, skipped : skipped + 1]
    sign = torch.where(key >= threshold, torch.sign(grad).flatten(1), 0.0)
    return (sign / (sign.abs().sum(1, keepdim=True) + TINY_COUNT)).reshape(grad.shape)


def pgd_step(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Bound,
    alpha: Bound,
    norm: str = "Linf",
    clip_min: float = 0.0,
    clip_max: float = 1.0,
    l1_sparsity: float = 0.2,
) -> Tensor:
    """x_adv moved by alpha along the gradient's direction, projected onto ball and box."""
    if x_adv.numel() == 0:
        return x_adv.clone()
    v, g, c = widened(x_adv), grad.to(widened(x_adv).dtype), widened(x)
    eps, alpha = per_sample(eps, v), per_sample(alpha, v)
    if norm == "Linf":
        v = v + alpha * torch.sign(g)
        v = torch.min(torch.max(v, c - eps), c + eps).clamp(clip_min, clip_max)
    elif norm == "L2":
        length = rows_norm(g)
        step = alpha * g / (length + TINY_NORM)
        d = torch.where(torch.isfinite(length), v + step, v) - c
        d = d * (eps / (rows_norm(d) + TINY_NORM)).clamp(max=1)
        v = (c + d).clamp(clip_min, clip_max)
    else:
        v = project_l1(v + alpha * l1_direction(g, l1_sparsity) - c, c, eps, clip_min, clip_max)
    return v if v.dtype == x.dtype else round_towards(v, x)


def feed(x_adv: Tensor, dtype: torch.dtype, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """The model's input: (x_adv - mean) / std per channel, cast."""
    v = widened(x_adv)
    if mean is not None and std is not None:
        v = (v - per_channel(mean.to(v.dtype), v)) / per_channel(std.to(v.dtype), v)
    return v.to(dtype)


def random_start(
    x: Tensor,
    noise: Tensor,
    eps: Bound,
    kind: str = "uniform",
    norm: str = "Linf",
    radius: Tensor | None = None,
    sigma: float = 0.001,
    clip: bool = True,
    clip_min: float = 0.0,
    clip_max: float = 1.0,
) -> Tensor:
    """x plus noise: sigma * noise (Gaussian), or the ball's uniform start made from it."""
    if x.numel() == 0:
        return x.clone()
    c, z = widened(x), noise.to(widened(x).dtype)
    eps = per_sample(eps, c)
    if kind == "gaussian":
        v = c + sigma * z
    elif norm == "Linf":
        v = c + (z * 2 * eps - eps)
    elif norm == "L2":
        assert radius is not None
        v = c + per_sample(radius, c) * eps / (rows_norm(z) + TINY_NORM) * z
    else:
        bounds = (clip_min, clip_max) if clip else (-1e30, 1e30)
        v = project_l1(z, c, eps, *bounds)
    if clip:
        v = v.clamp(clip_min, clip_max)
    return v if v.dtype == x.dtype else round_towards(v, x)


def kl_rows(log_p: Tensor, log_q: Tensor, log_floor: float = 0.0) -> Tensor:
    """sum_c p (log(p + floor) - log q) per row; p = 0 contributes nothing."""
    p = log_p.exp()
    log_pf = torch.log(p + log_floor) if log_floor > 0 else log_p
    return torch.where(p == 0, 0.0, p * (log_pf - log_q)).sum(1)


def kl_target_gradient(log_p: Tensor, log_q: Tensor, log_floor: float = 0.0) -> Tensor:
    """d kl_rows / d teacher logits at temperature 1: p_j (h_j - sum_c p_c h_c)."""
    p = log_p.exp()
    slope = torch.log(p + log_floor) + p / (p + log_floor) if log_floor > 0 else log_p + 1
    h = torch.where(p == 0, 0.0, slope - log_q)
    return p * (h - (p * h).sum(1, keepdim=True))


def other_class(z: Tensor, y: Tensor) -> Tensor:
    """The most likely class that is not y."""
    return z.scatter(1, y[:, None], -float("inf")).argmax(1)


def logit_loss(
    logits: Tensor,
    target: Tensor | None = None,
    kind: str = "kl",
    labels: Tensor | None = None,
    goals: Tensor | None = None,
    targeted: bool = False,
    temperature: float = 1.0,
    kappa: float = 0.0,
    mix: float = 0.5,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Per-row loss, its gradient in the logits and, for kl, in the target's logits."""
    z = widened(logits)
    t = None if target is None else target.to(z.dtype)
    dtarget = None
    side = -1.0 if targeted else 1.0
    rows = torch.arange(len(z), device=z.device)
    if kind == "kl":
        assert t is not None
        log_q, log_p = (z / temperature).log_softmax(1), (t / temperature).log_softmax(1)
        loss = kl_rows(log_p, log_q)
        d = (log_q.exp() - log_p.exp()) / temperature
        dtarget = kl_target_gradient(log_p, log_q) / temperature
        loss, d, dtarget = loss * side, d * side, (dtarget * side * scale).to(target.dtype)  # type: ignore[union-attr]
    elif kind in ("ce", "mixture"):
        assert labels is not None
        log_q = z.log_softmax(1)
        p = torch.nn.functional.one_hot(labels, z.shape[1]).to(z.dtype)
        if t is not None and kind == "mixture":
            p = (1 - mix) * p + mix * (t / temperature).softmax(1)
        loss = -torch.where(p == 0, 0.0, p * log_q).sum(1) * side
        d = (log_q.exp() - p) * side
    elif kind == "margin":
        assert labels is not None
        other = other_class(z, labels)
        gap = side * (z[rows, labels] - z[rows, other]) + kappa
        loss = -gap.clamp(min=0)
        d = torch.zeros_like(z)
        d[rows, labels] -= side * (gap > 0)
        d[rows, other] += side * (gap > 0)
    else:
        assert labels is not None
        top, place = z.sort(dim=1, descending=True, stable=True)
        other = goals if goals is not None else other_class(z, labels)
        gap = z[rows, labels] - z[rows, other]
        tail = (top[:, 2] + top[:, 3]) / 2 if targeted else top[:, 2]
        spread = top[:, 0] - tail + TINY_NORM
        loss, bend = -gap / spread, gap / spread**2
        d = torch.zeros_like(z)
        d[rows, labels] -= 1 / spread
        d[rows, other] += 1 / spread
        d[rows, place[:, 0]] += bend
        for k in (2, 3) if targeted else (2,):
            d[rows, place[:, k]] -= bend / (2 if targeted else 1)
    return loss * scale, (d * scale).to(logits.dtype), dtarget


def distill_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, log_floor: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """kl_rows of the tempered softmaxes with its gradients in both logits, per row."""
    log_q = (widened(student_logits) / temperature).log_softmax(1)
    log_p = (teacher_logits.to(log_q.dtype) / temperature).log_softmax(1)
    dstudent = (log_q.exp() - log_p.exp()) / temperature
    dteacher = kl_target_gradient(log_p, log_q, log_floor) / temperature
    return kl_rows(log_p, log_q, log_floor), dstudent, dteacher
