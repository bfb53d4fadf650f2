"""Two equal fp64 networks, one for the drop-in and one for the published code."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from tests.methods.loops import assert_same_network, network


@dataclass
class Twins:
    ours: nn.Module
    theirs: nn.Module
    teacher: nn.Module
    x: torch.Tensor
    y: torch.Tensor

    def optimizers(self) -> list[torch.optim.SGD]:
        """SGD over each network, whose parameters hold gradients that must not survive."""
        for net in (self.ours, self.theirs):
            for p in net.parameters():
                p.grad = torch.ones_like(p)
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.ours, self.theirs)]

    def assert_same_step(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        """Losses, their parameter gradients, BN statistics and modes agree."""
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        for loss in (ours, theirs):
            loss.backward()
        for a, b in zip(self.ours.parameters(), self.theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9)
        self.assert_same_state()

    def assert_same_state(self) -> None:
        assert_same_network(self.ours, self.theirs)
        flags = [[m.training for m in net.modules()] for net in (self.ours, self.theirs)]
        assert flags[0] == flags[1]


def twins(classes: int = 5) -> Twins:
    ours, teacher = network(0, classes), network(1, classes)
    generator = torch.Generator().manual_seed(2)
    # fp32 values, because a sum of noise with them must not round twice; some on the box's edge.
    x = torch.rand(6, 1, 8, 8, generator=generator).mul(1.2).sub(0.1).clamp(0, 1).double()
    y = torch.randint(classes, (6,), generator=generator)
    return Twins(ours, copy.deepcopy(ours), teacher, x, y)


def gaussian(x: torch.Tensor) -> torch.Tensor:
    """The start of RSLAD, TRADES, MART and AdaAD: drawn in fp32 on the CPU, not clipped."""
    return x + 0.001 * torch.randn(x.shape).to(x)


def inputs_of(net: nn.Module) -> list[torch.Tensor]:
    """What the network is given from now on."""
    seen: list[torch.Tensor] = []
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    return seen
