"""Auto-PGD as the official code runs it, in plain words: one sample, its history a list."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastard import reference


def dlr(z, y, target=None):
    top = z.sort().values
    if target is not None:
        return -(z[y] - z[target]) / (top[-1] - (top[-3] + top[-4]) / 2 + 1e-12)
    other = top[-2] if z.argmax() == y else top[-1]
    return -(z[y] - other) / (top[-1] - top[-3] + 1e-12)


def loss_of(z, y, loss, target):
    return F.cross_entropy(z[None], y[None]) if loss == "ce" else dlr(z, y, target)


def project(v, x, eps, norm):
    if norm == "Linf":
        return v.clamp(x - eps, x + eps).clamp(0, 1)
    if norm == "L2":
        d = v - x
        return (x + d / (d.norm() + 1e-12) * min(eps, d.norm())).clamp(0, 1)
    return reference.project_l1((v - x)[None], x[None], eps, 0.0, 1.0)[0]


def start(x, noise, eps, norm):
    if norm == "L1":
        return project(x + noise, x, eps, norm)
    noise = 2 * noise - 1 if norm == "Linf" else noise
    size = noise.abs().max() if norm == "Linf" else noise.norm()
    return (x + eps * noise / (size + 1e-12)).clamp(0, 1)


def sparse(grad, share):
    order = grad.abs().flatten().sort().values
    threshold = order[int(min(max((1 - share) * len(order), 0), len(order) - 1))]
    sign = grad.sign() * (grad.abs() >= threshold)
    return sign / (sign.abs().sum() + 1e-10)


def run(model, x, y, noise, norm, eps, steps, loss="ce", target=None, rho=0.75):
    """One sample x [C, H, W]: (best image, its loss, the latest misclassified or None)."""

    def query(v):
        v = v.detach().requires_grad_()
        z = model(v[None])[0]
        value = loss_of(z, y, loss, target)
        return value.item(), torch.autograd.grad(value, v)[0], (z.argmax() == y).item()

    v = start(x, noise, eps, norm)
    value, grad, right = query(v)
    best, best_value, best_grad = v, value, grad
    fooled = None if right else v
    size, old, history = eps * (1 if norm == "L1" else 2), v, [0.0] * steps
    window = max(int(0.04 * steps), 1) if norm == "L1" else max(int(0.22 * steps), 1)
    since, last_best, just_halved = 0, best_value, True
    share, pixels = 0.2, x.numel()
    last_pixels = pixels
    for i in range(steps):
        if norm == "L1":
            new = project(v + size * sparse(grad, share), x, eps, norm)
        else:
            direction = grad.sign() if norm == "Linf" else grad / (grad.norm() + 1e-12)
            new = project(v + size * direction, x, eps, norm)
            a = 0.75 if i else 1.0
            new = project(v + a * (new - v) + (1 - a) * (v - old), x, eps, norm)
        old, v = v, new
        value, grad, right = query(v)
        fooled = fooled if right else v
        history[i] = value
        if value > best_value:
            best, best_value, best_grad = v, value, grad
        since += 1
        if since < window:
            continue
        since = 0
        if norm == "L1":
            now = (best != x).sum().item()
            back = now / last_pixels < 0.95
            share, last_pixels = now / pixels / 1.5, now
            size = eps if back else max(size / 1.5, eps / 10)
        else:
            # history[-1] is still 0 in the first window.
            rises = sum(history[i - k] > history[i - k - 1] for k in range(window))
            back = rises <= rho * window or (not just_halved and last_best >= best_value)
            just_halved, last_best = back, best_value
            size = size / 2 if back else size
            window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
        if back:
            v, grad = best, best_grad
    return best, best_value, fooled
