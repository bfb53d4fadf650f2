"""Small networks for the attack tests."""

from __future__ import annotations

import torch
from torch import nn


def small_net(classes: int = 10, seed: int = 0, channels: int = 3) -> nn.Sequential:
    """Convolutions with BN whose statistics are not the initial ones, in train mode."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, classes))  # fmt: skip
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.train()


def batch(n: int = 8, classes: int = 10, channels: int = 3, side: int = 16):
    """Images, labels and teacher logits."""
    g = torch.Generator().manual_seed(42)
    x = torch.rand(n, channels, side, side, generator=g)
    y = torch.randint(0, classes, (n,), generator=g)
    return x, y, torch.randn(n, classes, generator=g) * 3
