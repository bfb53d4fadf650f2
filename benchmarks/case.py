"""A benchmark's declaration: what runs, on what, what is asserted first, which bounds it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .record import OURS, Line, Result, Target

QUICK, CPU, GPU, FULL = "quick", "cpu", "gpu", "full"
SUITES = (QUICK, CPU, GPU, FULL)


@dataclass(frozen=True)
class Bound:
    """What a figure of the case should reach.

    `who` names the rival whose ratio it is, `figure` a field of fastard's own result otherwise.
    `needs` is a word of the machine without which the bound says nothing ("amx", "H200").
    """

    at: str
    bound: float
    who: str | None = None
    figure: str = "ratio"
    needs: str | None = None


@dataclass(frozen=True)
class Case:
    """One declaration; `measure` yields its lines, one a contestant, and asserts `agreement` first.

    `rounds` is how many count at least, `seconds` how long they go on beyond, `most` after how
    many seconds none begins; `warm_up` rounds come before, beside the run that is asserted of.
    """

    name: str
    group: str
    title: str
    measure: Callable[[Case], Iterator[Line]]
    agreement: str
    suites: tuple[str, ...]
    device: str = "cpu"
    model: str | None = None
    norm: str | None = None
    loss: str | None = None
    precision: str | None = None
    batch: int | None = None
    steps: int | None = None
    shapes: dict[str, list[int]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    bytes: int | None = None
    rivals: tuple[str, ...] = ()
    rounds: int = 5
    seconds: float = 0.0
    most: float = 120.0
    warm_up: int = 0
    bounds: tuple[Bound, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def line(self, who: str, status: str = "measured", **figures: Any) -> Result:
        """A result of this case."""
        mine = {
            name: getattr(self, name)
            for name in ("group", "title", "device", "model", "norm", "loss", "precision", "batch",
                         "steps", "shapes", "dtypes", "bytes")
        }  # fmt: skip
        return Result(case=self.name, who=who, status=status, **{**mine, **figures})

    def targets(
        self, results: list[Result], machine: dict[str, Any], why: str = "it was not measured"
    ) -> Iterator[Target]:
        """Each bound with what was measured, or why nothing was."""
        for bound in self.bounds:
            name, figure = self.name, "times faster"
            if bound.who is not None:
                name = f"{self.name}, against {bound.who}"
            elif bound.figure == "over_floor":
                name, figure = f"{self.name}, closeness to the limit", "of the floor's time"
            elif bound.figure == "share_of_copy":
                name, figure = f"{self.name}, closeness to the limit", "of copy_'s byte rate"
            found = [r for r in results if r.who == (bound.who or OURS)]
            value = getattr(found[0], bound.figure) if found else None
            reached, reason = None, None
            if value is not None:
                reached = value >= bound.bound if bound.at == "least" else value <= bound.bound
                if bound.needs and not has(machine, bound.needs):
                    name = f"{name} (meant for {bound.needs})"
            else:
                # Where one line stands for the case, its reason is everyone's.
                reason = next((r.reason for r in found or results[:1] if r.reason), why)
            yield Target(name=name, figure=figure, at=bound.at, bound=bound.bound, value=value,
                         reached=reached, case=self.name, reason=reason)  # fmt: skip


def has(machine: dict[str, Any], word: str) -> bool:
    """Whether the machine is what a bound is meant for."""
    if word == "AMX":
        return bool(machine.get("amx"))
    return word in ((machine.get("gpu") or {}).get("name") or "")
