"""Names of RSLAD's rslad_loss.py (Zi et al. 2021, github.com/zibojia/RSLAD).

``from fastard.compat.rslad import *`` brings what its star import brought.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from torch import Tensor
from torch.autograd import Variable

from fastard.api import pgd_ce, pgd_kl
from fastard.compat.shared import as_it_is, check_optimizer, check_settings, device_of

__all__ = ["F", "Variable", "attack_pgd", "nn", "np", "optim", "rslad_inner_loss", "torch"]


def attack_pgd(
    model: nn.Module,
    train_batch_data: Tensor,
    train_batch_labels: Tensor,
    attack_iters: int = 10,
    step_size: float = 2 / 255.0,
    epsilon: float = 8.0 / 255.0,
    *,
    engine: bool = True,
    precision: str | None = None,
) -> Tensor:
    """PGD on the cross-entropy in the model's current mode: RSLAD's evaluation during training.

    Equivalent to: ``fastard.pgd_ce(model, x, y, epsilon, step_size, attack_iters)``, in whichever
    mode each module is.

    Images and labels may lie on another device than the model; noise is drawn on the images'.
    Returns: the adversarial images (not their difference), on the device of the images.
    Raises TypeError or ValueError for bad input, in one sentence.
    """
    check_settings(attack_iters=attack_iters, step_size=step_size, epsilon=epsilon)
    home = train_batch_data.device
    device = device_of(model) or home
    x_adv = pgd_ce(
        as_it_is(model), train_batch_data.to(device), train_batch_labels.to(device), epsilon,
        step_size, attack_iters, noise_device=home, engine=engine, precision=precision)  # fmt: skip
    return x_adv.to(home)


def rslad_inner_loss(
    model: nn.Module,
    teacher_logits: Tensor,
    x_natural: Tensor,
    y: Tensor,
    optimizer: optim.Optimizer,
    step_size: float = 0.003,
    epsilon: float = 0.031,
    perturb_steps: int = 10,
    beta: float = 6.0,
    *,
    engine: bool = True,
    precision: str | None = None,
) -> Tensor:
    """The student's logits on RSLAD's adversarial images: not a loss, in spite of its name.

    Equivalent to: ``x_adv = fastard.pgd_kl(model, x_natural, teacher_logits, epsilon, step_size,
    perturb_steps, noise_device="cpu"); model.train(); optimizer.zero_grad(); model(x_adv)``

    `y` and `beta` do nothing, as published; the published scripts pass step_size 2/255 and epsilon
    8/255, the defaults are TRADES'. The start is 0.001 * N(0, 1), drawn on the CPU, unclipped.
    Returns: [B, C] logits in train mode, with their graph.
    Raises TypeError or ValueError for bad input, in one sentence.
    """
    check_settings(step_size=step_size, epsilon=epsilon, perturb_steps=perturb_steps)
    check_optimizer(optimizer)
    x_adv = pgd_kl(
        model, x_natural, teacher_logits, epsilon, step_size, perturb_steps, noise_device="cpu",
        engine=engine, precision=precision)  # fmt: skip
    model.train()
    optimizer.zero_grad()
    return model(x_adv)
