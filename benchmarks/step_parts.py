"""Where the time of one training step goes: attack, teacher, student, backward, and the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from torch import Tensor, nn

from fastard.engine import Inference
from fastard.methods.base import Method


class Clock:
    """Seconds by name; of parts inside parts the outermost counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._depth = 0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begun, self._depth = time.perf_counter(), self._depth + 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                took = time.perf_counter() - begun
                self.seconds[name] = self.seconds.get(name, 0.0) + took


class _Part:
    """A part that can be entered again and again, as a method's attack_timer is."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock, self.name = clock, name

    def __enter__(self) -> None:
        self._open = self.clock.part(self.name)
        self._open.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)


@contextmanager
def watched(method: Method, student: nn.Module) -> Iterator[Clock]:
    """Times the attack, the teachers' and the student's passes of every step in the block.

    On the student's class: a hook, or a forward of its own, would take its plan from the attack.
    """
    clock, kind = Clock(), type(student)

    def timed(run: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with clock.part(name):
                return run(*arguments, **options)

        return call

    kept = method.attack_timer
    with ExitStack() as around:
        passes = ((kind, "__call__", "student"), (Inference, "__call__", "teacher"),
                  (Tensor, "backward", "backward"))  # fmt: skip
        for owner, attribute, name in passes:
            own = getattr(owner, attribute)
            around.enter_context(mock.patch.object(owner, attribute, timed(own, name)))
        method.attack_timer = _Part(clock, "attack")
        try:
            yield clock
        finally:
            method.attack_timer = kept


def rest(parts: dict[str, float]) -> float:
    """What a step takes outside of the attack and the passes that it needs."""
    return parts["step"] - sum(took for name, took in parts.items() if name != "step")
