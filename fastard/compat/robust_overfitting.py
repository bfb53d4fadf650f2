"""Names of the robust_overfitting family (Rice et al. 2020).

The scripts of github.com/locuslab/robust_overfitting share this `attack_pgd`; AWP, Bag of Tricks
and others copied it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastard import checks, ops
from fastard.compat.shared import as_it_is, check_images, check_settings, is_training
from fastard.engine import Program, RowLoss, UserLoss
from fastard.engine.gradient import Seed
from fastard.kinds import LossKind, unknown
from fastard.shapes import per_sample

__all__ = ["attack_pgd", "cifar10_mean", "cifar10_std"]

cifar10_mean = (0.4914, 0.4822, 0.4465)
cifar10_std = (0.2471, 0.2435, 0.2616)


def _into_box(delta: Tensor, X: Tensor) -> Tensor:
    return torch.max(torch.min(delta, 1 - X), -X)


def _start(X: Tensor, epsilon: float, norm: str) -> Tensor:
    delta = torch.zeros_like(X)
    if norm == "l_inf":
        return _into_box(delta.uniform_(-epsilon, epsilon), X)
    size = per_sample(delta.normal_().flatten(1).norm(dim=1), X)
    radius = torch.zeros_like(size).uniform_(0, 1)
    return _into_box(delta * (radius / size * epsilon), X)


def _moved(delta: Tensor, grad: Tensor, X: Tensor, epsilon: float, alpha: float, norm: str):
    # The step's kernel around the origin: its box of one bound for all pixels cannot bind there.
    step = ops.pgd_step_(
        delta.clone(), grad, torch.zeros_like(delta), epsilon, alpha, norm, -1.0, 1.0
    )
    return _into_box(step, X)


def _mixup(y_a: Tensor | None, y_b: Tensor | None, lam: float | None) -> UserLoss:
    if y_a is None or y_b is None or lam is None:
        raise ValueError("mixup=True needs y_a, y_b and lam.")

    def loss(logits: Tensor, _: Tensor) -> Tensor:
        first, second = (F.cross_entropy(logits, y, reduction="none") for y in (y_a, y_b))
        return lam * first + (1 - lam) * second

    return UserLoss(loss, y_a)


def attack_pgd(
    model: nn.Module,
    X: Tensor,
    y: Tensor,
    epsilon: float,
    alpha: float,
    attack_iters: int,
    restarts: int,
    norm: str,
    early_stop: bool = False,
    mixup: bool = False,
    y_a: Tensor | None = None,
    y_b: Tensor | None = None,
    lam: float | None = None,
    *,
    mean: Sequence[float] | Tensor | None = cifar10_mean,
    std: Sequence[float] | Tensor | None = cifar10_std,
    engine: bool = True,
    precision: str | None = None,
) -> Tensor:
    """PGD on the cross-entropy in the model's current mode; its result is delta, not X + delta.

    Equivalent to, from a uniform delta in the ball, `attack_iters` times (l_inf)::

        grad, = torch.autograd.grad(F.cross_entropy(model((X + delta - mean) / std), y), delta)
        delta = (delta + alpha * grad.sign()).clamp(-epsilon, epsilon).clamp(-X, 1 - X)

    In train mode every forward updates BatchNorm statistics, the one after the last step and, with
    mixup, the second one of each step included. Noise is drawn on X's device.

    Args:
        X: [B, C, H, W] in [0, 1], before normalisation.
        norm: "l_inf" or "l_2".
        restarts: of several, each sample keeps the delta of highest loss, the latest of equals.
        early_stop: moves only samples that are still classified as y, and stops when none is.
        mixup: the loss is lam * CE(y_a) + (1 - lam) * CE(y_b).
        mean, std: what the scripts' own `normalize` applies; None for a model that takes [0, 1].
    Returns: delta, X's shape, detached.
    Raises TypeError or ValueError for bad input, in one sentence.
    """
    if norm not in ("l_inf", "l_2"):
        raise unknown("norm", norm, ("l_inf", "l_2"))
    check_settings(epsilon=epsilon, alpha=alpha, attack_iters=attack_iters, restarts=restarts)
    for value, name in ((epsilon, "epsilon"), (alpha, "alpha")):
        checks.number(value, name)
    values = check_images(model, X, "X")
    X, y = X.detach(), checks.labels(y, len(X), X.device).long()
    seed: Seed = _mixup(y_a, y_b, lam) if mixup else RowLoss(LossKind.ce, y, check_values=values)
    twice = mixup and is_training(model)
    program = Program(as_it_is(model), precision, mean=mean, std=std, engine=engine)
    shape = (-1, *[1] * (X.dim() - 1))
    best, best_loss = torch.zeros_like(X), X.new_zeros(len(X))
    with program.running(X):
        for _ in range(restarts):
            delta = _start(X, epsilon, norm)
            for _ in range(attack_iters):
                logits = program.forward(X + delta)
                right = logits.argmax(1) == y
                # Stopping early is reading the verdicts: the caller asked for it.
                if early_stop and not right.any():
                    break
                if twice:
                    logits = program.forward(X + delta)
                grad = program.pixel_vjp(seed(logits)[1])
                moved = _moved(delta, grad, X, epsilon, alpha, norm)
                delta = torch.where(right.view(shape), moved, delta) if early_stop else moved
            loss = seed(program.infer_feed(program.prepared(X + delta)))[0]
            kept = loss >= best_loss
            best = torch.where(kept.view(shape), delta, best)
            best_loss = torch.maximum(loss, best_loss)
    return best
