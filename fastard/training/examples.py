"""Adversarial examples to look at: clean image, attacked image and what was added."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.utils import make_grid

from fastard import api
from fastard.data import Splits
from fastard.engine import attack_mode
from fastard.engine.precision import arithmetic, resolve
from fastard.training.config import Resolved

COUNT = 8


def example_grid(network: nn.Module, splits: Splits, config: Resolved) -> torch.Tensor:
    """The first images, attacked by the validation's PGD: float [3, H, W] in [0, 1] on the CPU.

    Rows: the clean image, the attacked one, and their difference as
    ``0.5 + difference / (2 * largest difference)``. They are held-out images where there are some,
    else training images.
    """
    images = splits.train if splits.val is None else splits.val
    draws = torch.Generator().manual_seed(config.seed)
    batch = next(iter(images.batches(COUNT, augment="none", generator=draws)))
    device = batch.x.device.type
    with arithmetic(resolve("fp32", device), network, device), attack_mode(network):
        x_adv = api.pgd(
            network,
            batch.x,
            batch.y,
            config.eps,
            config.val_alpha,
            config.val_steps,
            norm=config.norm,
            noise_device="cpu",
            generator=draws,
            check_logits=False,
        )
    difference = x_adv - batch.x
    shown = 0.5 + difference / (2 * difference.abs().amax().clamp(min=1e-12))
    rows = torch.cat([batch.x, x_adv, shown]).float().cpu()
    return make_grid(rows, nrow=len(batch.x), padding=1)
