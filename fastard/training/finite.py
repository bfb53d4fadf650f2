"""The end of a run whose numbers are no numbers any more, before they reach its files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from fastard.training.loop import Trainer


def all_finite(*networks: nn.Module, more: Iterable[torch.Tensor] = ()) -> bool:
    """Whether every parameter and buffer, and `more`, is finite; waits for the device once.

    Of a divided tensor this process's piece is asked.

    Equivalent to: ``all(t.isfinite().all() for t in network.state_dict().values())``.
    """
    held = itertools.chain.from_iterable((*n.parameters(), *n.buffers()) for n in networks)
    pieces = (t.to_local() if isinstance(t, DTensor) else t for t in (*held, *more))
    numbers = [t.detach() for t in pieces if t.is_floating_point() and t.numel()]
    if not numbers:
        return True
    return math.isfinite(torch.nn.utils.get_total_norm(numbers, norm_type=math.inf))


def require_finite_loss(trainer: Trainer) -> None:
    """Raises FloatingPointError naming the first step of this epoch without a finite loss."""
    if bad_step := int(trainer.tally.bad_step):
        raise FloatingPointError(
            f"the loss is not finite at step {bad_step} of epoch {trainer.epoch + 1}; training "
            f"stopped, {_kept(trainer)}."
        )


def require_finite_weights(trainer: Trainer) -> None:
    """Raises FloatingPointError when a weight, a buffer, their average or momentum is not finite.

    A loss tells of the weights before its step only. Every process has to ask.
    """
    average = [] if trainer.average is None else [trainer.average.averaged]
    momentum = trainer.stepper.momentum()
    finite = all_finite(trainer.student, trainer.method, *average, more=momentum)
    if trainer.ranks.any(not finite):
        raise FloatingPointError(
            f"the weights are not finite after step {trainer.step} of epoch {trainer.epoch + 1}; "
            f"training stopped, {_kept(trainer)}."
        )


def _kept(trainer: Trainer) -> str:
    run = trainer.run
    if trainer.saved is None:
        return "of the checkpoints none was saved"
    epoch, step = trainer.saved
    place = f"step {step} of epoch {epoch + 1}" if step else f"the end of epoch {epoch}"
    weights = f"{run.last} holds epoch {trainer.epoch}" if trainer.epoch else "no epoch was saved"
    return f"of the checkpoints {weights} and {run.state} {place}"
