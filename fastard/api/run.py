"""One restart of an attack as a function of tensors, so that it can be recorded whole."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastard import ops
from fastard.attacks import Moves, Start, pgd
from fastard.engine import Program
from fastard.engine.capture import Values
from fastard.engine.recorder import Lane, Tensors

# Of (feed, x_adv): the input gradient, and the loss per sample.
Ascent = tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]


@dataclass(frozen=True)
class Goal:
    """What an attack ascends: the networks, and a loss of the tensors that are `given` by name.

    Attributes:
        programs: the attacked network first.
        key: everything that the loss depends on beside `given`.
        given: what `bind` takes its tensors from; of a recorded attack they are buffers.
        bind: makes gradient and loss; a lane says that they are recorded, so that they may look at
            no value.
        refusal: why this goal cannot be recorded, if so.
    """

    programs: Sequence[Program]
    key: Hashable
    given: Values
    bind: Callable[[Values, Lane | None], Ascent]
    refusal: str | None = None


class Run:
    """Renewed weights, start, steps and, if `judged`, the loss reached; `watched`: and which
    samples met a gradient that was not finite."""

    def __init__(
        self, goal: Goal, moves: Moves, start: Start, steps: int, judged: bool, watched: bool
    ) -> None:
        self.goal, self.moves, self.start, self.steps = goal, moves, start, steps
        self.judged, self.watched = judged, watched

    @property
    def key(self) -> Hashable:
        """What the run depends on beside its inputs and programs."""
        moves, start = self.moves, self.start
        return (
            self.goal.key, self.steps, self.judged, self.watched,
            moves.norm, moves.clip_min, moves.clip_max, moves.l1_sparsity,
            start.kind, start.clip, start.norm, start.sigma,
        )  # fmt: skip

    def __call__(self, held: dict[str, Any], lane: Lane | None) -> Tensors:
        program, x = self.goal.programs[0], held["x"]
        for each in self.goal.programs:
            each.renew()
        moves = replace(self.moves, eps=held["eps"], alpha=held["alpha"])
        x_adv = torch.empty_like(x)
        # Taken out: as large as the images, and of no use after the start.
        self.start.place_(
            x_adv, x, held.pop("noise"), held.pop("radius"), moves.eps, moves.clip_min,
            moves.clip_max)  # fmt: skip
        fed = program.feed(x)
        feed = None if fed.is_x else torch.empty_like(x, dtype=fed.dtype)
        if feed is not None:
            feed.copy_(ops.prepared(x_adv, fed.mean, fed.std, fed.dtype))
        gradient, value = self.goal.bind(held, lane)
        found = {"x_adv": x_adv}
        if self.watched:
            found["broken"] = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        pgd(lambda source: gradient(source, x_adv), x, x_adv, feed, moves, self.steps,
            mean=fed.mean, std=fed.std, broken=found.get("broken"))  # fmt: skip
        if self.judged:
            found["loss"] = value(x_adv if feed is None else feed, x_adv)
        return found
