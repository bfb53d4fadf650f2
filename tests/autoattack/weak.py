"""A small network that small perturbations break, with images and labels."""

from __future__ import annotations

import torch
from torch import nn


def weak_net(size=(15, 15), dtype=torch.float32, classes=5, channels=3, n=16):
    """The network, images of fp32 values, and its own labels, but for the first's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pixels = ((size[0] + 1) // 2) * ((size[1] + 1) // 2)
        net = nn.Sequential(
            nn.Conv2d(channels, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(6 * pixels, classes))  # fmt: skip
        x = torch.rand(n, channels, *size)
    with torch.no_grad():
        net[3].weight.mul_(5)
        net[3].bias.sub_(net(x).mean(0))
        y = net(x).argmax(1)
    y[0] = (y[0] + 1) % classes
    return net.eval().to(dtype), x.to(dtype), y
