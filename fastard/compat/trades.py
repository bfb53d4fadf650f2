"""Names of TRADES' trades.py (Zhang et al. 2019, github.com/yaodongyu/TRADES)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastard import checks, losses
from fastard.api import pgd_kl
from fastard.compat.shared import check_images, check_optimizer, check_published
from fastard.engine import Inference, Program, RowLoss
from fastard.kinds import LossKind
from fastard.shapes import per_sample

__all__ = ["trades_loss"]


def _l2_attack(
    program: Program, x: Tensor, target: Tensor, epsilon: float, steps: int, values: bool
) -> Tensor:
    """Steps of 2 * epsilon / steps along the normalised gradient; first the box, then the ball."""
    torch.randn(x.shape)  # the start of the Linf branch, which the published code draws first
    delta = 0.001 * torch.randn(x.shape).to(x.device, x.dtype)
    seed = RowLoss(LossKind.kl, target, check_values=values)
    with program.running(x):
        for _ in range(steps):
            _, dlogits = seed(program.forward(x + delta))
            grad = program.pixel_vjp(dlogits)
            norms = grad.flatten(1).norm(dim=1)
            direction = grad / per_sample(norms, x)
            # Read by the host, as published: how much noise is drawn depends on it.
            if (norms == 0).any():
                direction[norms == 0] = -torch.randn_like(direction[norms == 0])
            delta = (delta + epsilon / steps * 2 * direction + x).clamp(0, 1) - x
            delta = delta.renorm(2, 0, epsilon)
    return (x + delta).clamp(0, 1)


def trades_loss(
    model: nn.Module,
    x_natural: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    step_size: float = 0.003,
    epsilon: float = 0.031,
    perturb_steps: int = 10,
    beta: float = 1.0,
    distance: str = "l_inf",
    *,
    engine: bool = True,
    precision: str | None = None,
) -> Tensor:
    """TRADES' attack and loss: cross-entropy on clean images plus beta times the divergence.

    Equivalent to: ``x_adv = fastard.pgd_kl(model, x, model_in_eval_mode(x), epsilon, step_size,
    perturb_steps, noise_device="cpu"); model.train(); optimizer.zero_grad();
    fastard.losses.trades(model(x), model(x_adv), y, beta, target_logits=model(x))``

    The defaults are the published function's; its CIFAR-10 script passes step_size 0.007 and beta
    6.0. The start is 0.001 * N(0, 1), drawn on the CPU, unclipped. "l_2" runs the published SGD on
    delta, which has its own step size, 2 * epsilon / perturb_steps. The clean images pass twice in
    train mode, and BatchNorm statistics see them twice. The model is left in train mode. A
    `distance` other than "l_inf" and "l_2", which turned the published attack off, is refused.
    Returns: a 0-dim loss with its graph.
    Raises TypeError or ValueError for bad input, in one sentence.
    """
    check_published(distance, ("l_inf", "l_2"), step_size, epsilon, perturb_steps)
    values = check_images(model, x_natural, "x_natural")
    y = checks.labels(y, len(x_natural), x_natural.device).long()
    check_optimizer(optimizer)
    target = Inference(model, precision, engine=engine)(x_natural)
    if distance == "l_inf":
        x_adv = pgd_kl(
            model, x_natural, target, epsilon, step_size, perturb_steps, noise_device="cpu",
            engine=engine, precision=precision)  # fmt: skip
    else:
        checks.number(epsilon, "epsilon")
        program = Program(model, precision, engine=engine)
        x_adv = _l2_attack(program, x_natural.detach(), target, epsilon, perturb_steps, values)
    model.train()
    optimizer.zero_grad()
    clean, adv, again = model(x_natural), model(x_adv), model(x_natural)
    return losses.trades(clean, adv, y, beta, target_logits=again)
