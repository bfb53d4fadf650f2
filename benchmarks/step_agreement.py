"""One training step from equal state, ours and the published one: they must agree to be timed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from fastard import methods
from fastard.engine import Inference

from . import published

# From the same x', rounding alone is left in the parameters' update. Of x' itself a pixel whose
# gradient is rounding may turn, and a few more at each step after it; the engine's parts from
# theirs in the same way: as strong an attack gives as high a loss.
UPDATE, LOSS, PIXELS = 1e-3, 0.01, 0.02
INNER = ("rslad", "adaad")


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


@contextmanager
def _recorded(found: list[Tensor]) -> Iterator[None]:
    """Appends to `found` what the published inner loops return."""
    with ExitStack() as around:
        for name in INNER:
            own = getattr(published, name)

            def kept(*arguments: Any, own: Callable[..., Tensor] = own, **options: Any) -> Tensor:
                found.append(own(*arguments, **options))
                return found[-1]

            around.enter_context(mock.patch.object(published, name, kept))
        yield


def _statistics(net: nn.Module) -> Tensor:
    found = [b.flatten().double() for b in net.buffers() if b.is_floating_point()]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def agreement(
    name: str, net: nn.Module, teacher: nn.Module, step_of: Callable[..., Any], x: Tensor,
    y: Tensor,
) -> dict[str, Any]:  # fmt: skip
    """Relative distances of update, loss and BatchNorm statistics to the published step's.

    The eager step takes the published loop's x'; `pixels` is the share of its own that differ.
    Statistics may differ where a method leaves out a pass whose loss has weight 0; that is said,
    not refused. Raises RuntimeError where a loss disagrees, or on the CPU the eager step's update
    or x': a GPU's convolutions need not repeat themselves.
    """
    reached: list[Tensor] = []
    with _recorded(reached):
        theirs, wanted, wanted_loss = _updated(net, lambda s, o: step_of(s, teacher, o, x, y))
    (theirs_adv,) = reached
    found: dict[str, Any] = {}
    own: list[Tensor] = []
    for arm, engine in (("eager", False), ("engine", True)):

        def step(student: nn.Module, optimizer: Any, engine: bool = engine) -> Tensor:
            # The published loops draw their noise on the CPU.
            method = methods.build(name, student, [teacher], engine=engine, noise_device="cpu")
            attack = method.attack

            def published_adv(*given: Any) -> Tensor:
                own.append(attack(*given))
                return theirs_adv

            with teachers(engine), ExitStack() as around:
                if not engine:
                    around.enter_context(mock.patch.object(method, "attack", published_adv))
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
    found["eager"]["pixels"] = float((own[0] != theirs_adv).float().mean())
    limits = [("eager", "loss", LOSS), ("engine", "loss", LOSS)]
    if not x.is_cuda:
        limits += [("eager", "update", UPDATE), ("eager", "pixels", PIXELS)]
    for arm, what, most in limits:
        if not found[arm][what] <= most:
            raise RuntimeError(
                f"{name}: the {what} of a step with {arm} attacks is {found[arm][what]:.1e} away "
                f"from the published step's, but may be {most:g}; nothing was timed."
            )
    return found
