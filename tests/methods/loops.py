"""Small fp64 networks with batch norm, and the published loops written out by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fastard.methods.registry import METHODS

EPS, ALPHA, STEPS = 0.1, 0.03, 4


def teachers_for(name: str, teacher: nn.Module) -> list[nn.Module]:
    """As many teachers as the method takes at least, all of them this one."""
    return [teacher] * METHODS[name].least_teachers


def network(seed: int, classes: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    layers = [
        *(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(72, classes)),
    ]
    return nn.Sequential(*layers).double()


@dataclass
class Setting:
    """A student, its twin for the hand-written loop, a teacher and three batches."""

    student: nn.Module
    twin: nn.Module
    teacher: nn.Module
    batches: list[tuple[torch.Tensor, torch.Tensor]]

    @property
    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.batches[0]


def sgd(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)


def train_with(method, batches) -> list[float]:
    """The loop of a user of fastard; returns the losses."""
    torch.manual_seed(3)
    optimizer = torch.optim.SGD(
        method.trainable_parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4
    )
    losses = []
    for x, y in batches:
        method.student.train()
        loss, logs = method(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert logs["loss"].ndim == 0
        assert not any(value.requires_grad for value in logs.values())
        losses.append(loss.item())
    return losses


def assert_same_network(ours: nn.Module, expected: nn.Module) -> None:
    """Parameters and BatchNorm statistics agree to 1e-9."""
    for (name, a), (_, b) in zip(
        ours.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def ascend(x: torch.Tensor, x_adv: torch.Tensor, loss_of, eps=EPS, alpha=ALPHA, steps=STEPS):
    """The published update: sign step, projection to the eps box, clamp to [0, 1]."""
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        gradient = torch.autograd.grad(loss_of(x_adv), x_adv)[0]
        x_adv = x_adv.detach() + alpha * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    return x_adv


class Passes:
    """Records which input a network saw in train mode, by name, in order."""

    def __init__(self, module: nn.Module, **named: torch.Tensor):
        self.seen: list[str] = []
        self._named = named
        module.register_forward_pre_hook(self._record)

    def _record(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if module.training:
            names = [name for name, t in self._named.items() if torch.equal(t, inputs[0])]
            self.seen.append(names[0] if names else "?")
