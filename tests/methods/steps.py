"""A hand-written training run beside a method's: in fp64 whole, in fp32 from the same x'."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastard import methods
from fastard.methods.registry import METHODS

from .loops import Setting, assert_same_network, network, sgd, train_with

# start(x, y) -> x' and loss(x, x', y, step) -> the loss, of a hand-written step.
Attack = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def student_for(name: str, seed: int = 0, classes: int = 5) -> nn.Module:
    """A small student of the kind that the method trains."""
    recipe = methods.preset(name)
    method = METHODS[recipe.method]
    return method.make_student(
        lambda outputs: network(seed, outputs),
        classes,
        max(method.least_teachers, 1),
        recipe.options_for(),
    )


def five(setting: Setting) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Five batches."""
    return [*setting.batches, *((x.flip(3), y) for x, y in setting.batches[:2])]


def by_hand(student: nn.Module, batches, attack: Attack, loss_of: Loss, parameters=()):
    """The published loop; returns the losses and every x'."""
    torch.manual_seed(3)
    optimizer, losses, adversarial = sgd(student), [], []
    for x, y in batches:
        student.eval()
        x_adv = attack(x, y)
        student.train()
        loss = loss_of(x, x_adv, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        adversarial.append(x_adv)
    return losses, adversarial


def gaussian(x: torch.Tensor) -> torch.Tensor:
    """The unclipped start of the published loops, in x's dtype."""
    return x + 0.001 * torch.randn(x.shape).to(x.dtype)


def assert_five_steps_agree(method, setting: Setting, attack: Attack, loss_of: Loss) -> None:
    """Five steps of `method` on `setting.student` and by hand on `setting.twin` are the same.

    `attack` and `loss_of` must use `setting.twin`. Parameters and statistics to 1e-9.
    """
    batches = five(setting)
    losses = train_with(method, batches)
    expected, _ = by_hand(setting.twin, batches, attack, loss_of)
    assert losses == pytest.approx(expected, rel=1e-8)
    assert_same_network(setting.student, setting.twin)


def in_fp32(setting: Setting) -> Setting:
    """The same networks and batches in single precision."""
    single = copy.deepcopy(setting)
    for module in (single.student, single.twin, single.teacher):
        module.float()
    single.batches = [(x.float(), y) for x, y in single.batches]
    return single


def assert_fp32_agrees(method, setting: Setting, attack: Attack, loss_of: Loss) -> None:
    """Five fp32 steps from the hand-written loop's x' end at its parameters, to 1e-5."""
    batches = five(setting)
    _, adversarial = by_hand(setting.twin, batches, attack, loss_of)
    optimizer = sgd(setting.student)
    for (x, y), x_adv in zip(batches, adversarial, strict=True):
        setting.student.train()
        loss, _ = method.outer(x, x_adv, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for a, b in zip(setting.student.parameters(), setting.twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
