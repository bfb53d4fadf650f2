"""Names of MART's mart.py (Wang et al. 2020, github.com/YisenWang/MART)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastard.api import pgd_ce
from fastard.compat.shared import check_optimizer, check_published

__all__ = ["mart_loss"]


def _boosted(clean: Tensor, adv: Tensor, y: Tensor, beta: float) -> Tensor:
    """MART's loss of clean and adversarial logits, with the constants of the published code."""
    q = adv.softmax(1)
    other = q.scatter(1, y[:, None], -torch.inf).argmax(1)
    boosted = F.cross_entropy(adv, y) + F.nll_loss(torch.log(1.0001 - q + 1e-12), other)
    # From the logarithm: the published KLDivLoss has a NaN gradient where a probability is 0.
    log_p = clean.log_softmax(1)
    p = log_p.exp()
    divergence = (p * (log_p - torch.log(q + 1e-12))).sum(1)
    wrong = 1.0000001 - p.gather(1, y[:, None]).squeeze(1)
    return boosted + float(beta) * (divergence * wrong).sum() / len(clean)


def mart_loss(
    model: nn.Module,
    x_natural: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    step_size: float = 0.007,
    epsilon: float = 0.031,
    perturb_steps: int = 10,
    beta: float = 6.0,
    distance: str = "l_inf",
    *,
    engine: bool = True,
    precision: str | None = None,
) -> Tensor:
    """MART's attack and loss: boosted cross-entropy plus the divergence where the model errs.

    Equivalent to: ``x_adv = fastard.pgd_ce(model, x, y, epsilon, step_size, perturb_steps,
    random_start="gaussian", noise_device="cpu"); model.train(); optimizer.zero_grad()``, then, with
    p = softmax(model(x)), q = softmax(model(x_adv)) and k the likeliest wrong class,
    ``mean(-log q_y - log(1.0001 - q_k + 1e-12) + beta * KL(p || q + 1e-12) * (1.0000001 - p_y))``

    The gradient flows through p and its weight too, as published. The start is 0.001 * N(0, 1),
    drawn on the CPU, unclipped; the clean images pass first; the model is left in train mode. A
    `distance` other than "l_inf", which turned the published attack off, is refused.
    Returns: a 0-dim loss with its graph.
    Raises TypeError or ValueError for bad input, in one sentence.
    """
    check_published(distance, ("l_inf",), step_size, epsilon, perturb_steps)
    check_optimizer(optimizer)
    x_adv = pgd_ce(
        model, x_natural, y, epsilon, step_size, perturb_steps, random_start="gaussian",
        noise_device="cpu", engine=engine, precision=precision)  # fmt: skip
    model.train()
    optimizer.zero_grad()
    clean, adv = model(x_natural), model(x_adv)
    return _boosted(clean, adv, y.long(), beta)
