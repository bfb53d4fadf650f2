"""One training step from equal state, ours and the published one: they must agree to be timed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from fastard import methods
from fastard.engine import Inference

# Eager attacks make the same x' to the bit, and rounding alone is left in the parameters' update.
# The engine's x' parts from theirs step by step, wherever a gradient's sign is rounding: as strong
# an attack gives as high a loss.
UPDATE, LOSS = 1e-3, 0.01


@contextmanager
def teachers(engine: bool) -> Iterator[None]:
    """Clean passes in eager autograd too, where `engine` is False."""
    own = Inference.__init__

    def made(self: Inference, *arguments: Any, **options: Any) -> None:
        own(self, *arguments, **options | {"engine": engine})

    with mock.patch.object(Inference, "__init__", made):
        yield


def _updated(net: nn.Module, run: Callable[[nn.Module, torch.optim.Optimizer], Any]) -> Any:
    """The student after one step with plain SGD, the change of all its parameters, the loss."""
    student = copy.deepcopy(net).train()
    before = [p.detach().clone() for p in student.parameters()]
    torch.manual_seed(1)
    loss = run(student, torch.optim.SGD(student.parameters(), lr=0.1))
    change = [(p.detach() - b).flatten() for p, b in zip(student.parameters(), before, strict=True)]
    return student, torch.cat(change).double(), loss.item()


def _statistics(net: nn.Module) -> Tensor:
    found = [b.flatten().double() for b in net.buffers() if b.is_floating_point()]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def agreement(
    name: str, net: nn.Module, teacher: nn.Module, published: Callable[..., Any], x: Tensor,
    y: Tensor,
) -> dict[str, Any]:  # fmt: skip
    """Relative distances of update, loss and BatchNorm statistics to the published step's.

    Statistics may differ where a method leaves out a pass whose loss has weight 0; that is said,
    not refused. Raises RuntimeError where a loss disagrees, or on the CPU the eager step's update:
    a GPU's convolutions need not repeat themselves.
    """
    theirs, wanted, wanted_loss = _updated(net, lambda s, o: published(s, teacher, o, x, y))
    found: dict[str, Any] = {}
    for arm, engine in (("eager", False), ("engine", True)):

        def step(student: nn.Module, optimizer: Any, engine: bool = engine) -> Tensor:
            # The published loops draw their noise on the CPU.
            method = methods.build(name, student, [teacher], engine=engine, noise_device="cpu")
            with teachers(engine):
                loss, _ = method(x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        student, update, loss = _updated(net, step)
        found[arm] = {
            "update": _apart(update, wanted),
            "loss": abs(loss / wanted_loss - 1),
            "statistics": _apart(_statistics(student), _statistics(theirs)),
        }
    eager = ("eager", "loss", LOSS) if x.is_cuda else ("eager", "update", UPDATE)
    for arm, what, most in (eager, ("engine", "loss", LOSS)):
        if not found[arm][what] <= most:
            raise RuntimeError(
                f"{name}: the {what} of a step with {arm} attacks is {found[arm][what]:.1e} away "
                f"from the published step's, but may be {most:g}; nothing was timed."
            )
    return found
