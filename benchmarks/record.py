"""The lines of a result file: one environment, then results and targets as they come, an end.

A result file is JSON Lines, one object a line, its `kind` first: `environment` (the first line,
with the schema), `result` (one contestant in one case), `target` (what a figure should reach),
`comparison` (with an earlier result), and `end`, which a run that was cut short lacks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1

# Why a result bears no seconds; "measured" bears them.
STATUSES = ("measured", "unavailable", "failed", "disagrees", "skipped")
GROUPS = ("op", "attack", "step", "autoattack", "memory", "scaling", "breakdown")
OURS = "fastard"


@dataclass(frozen=True)
class Environment:
    """What every figure of the file depends on, without naming the machine.

    `machine` tells two machines apart: runs whose machines differ may be compared, and are marked.
    `versions` holds every rival by its name, None for one that is not installed.
    """

    suite: str
    machine: dict[str, Any]
    versions: dict[str, str | None]
    commit: dict[str, Any]
    begun: str
    fastard: str
    schema: int = SCHEMA
    kind: str = "environment"


@dataclass(frozen=True)
class Seconds:
    """Seconds a call over the rounds; `spread`: the middle half's range over the median."""

    min: float
    median: float
    spread: float
    rounds: int
    calls: int = 1


@dataclass(frozen=True)
class Agreement:
    """What was asserted before the clock ran: `value`, at most `allowed`; None: it was a NaN."""

    what: str
    value: float | None
    allowed: float
    agreed: bool


@dataclass(frozen=True)
class Series:
    """Seconds along one size: seconds ~ x ** `exponent`, fitted to the logarithms.

    `off` is the largest distance of a point from the fit, as a share of the fit.
    """

    over: str
    x: list[float]
    seconds: list[float]
    exponent: float
    off: float


@dataclass(frozen=True)
class Result:
    """One contestant in one case; `who` is "fastard" or a rival's name.

    `ratio` is the rival's least time over fastard's at the same `precision`, `over_floor` this
    contestant's over the floor's, `memory_ratio` the rival's peak over fastard's. `breakdown` holds
    seconds by part. `stable` is None where nothing was timed; `unstable` says why it is False.
    """

    case: str
    group: str
    title: str
    who: str
    device: str
    status: str
    reason: str | None = None
    variant: str | None = None
    version: str | None = None
    model: str | None = None
    norm: str | None = None
    loss: str | None = None
    precision: str | None = None
    batch: int | None = None
    steps: int | None = None
    shapes: dict[str, list[int]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    agreement: Agreement | None = None
    seconds: Seconds | None = None
    stable: bool | None = None
    unstable: str | None = None
    ratio: float | None = None
    bytes: int | None = None
    bytes_per_second: float | None = None
    share_of_copy: float | None = None
    flops: int | None = None
    flops_per_second: float | None = None
    floor_seconds: float | None = None
    over_floor: float | None = None
    peak_bytes: int | None = None
    memory_ratio: float | None = None
    breakdown: dict[str, float] | None = None
    series: Series | None = None
    kind: str = "result"


@dataclass(frozen=True)
class Target:
    """A bound that a figure should keep: `at` "least" or "most" `bound`; `value` as measured.

    `reached` is None, with the `reason`, where nothing was measured. `case` names the results'.
    """

    name: str
    figure: str
    at: str
    bound: float
    value: float | None
    reached: bool | None
    case: str | None = None
    reason: str | None = None
    kind: str = "target"


@dataclass(frozen=True)
class Comparison:
    """One contestant's time now and in an earlier result: `change` is now over then.

    `slower`: `change` lies beyond 1 + `noise`. Where the machines differ, `same_machine` is False
    and `change` is that of the share of the rivals' time, since seconds say nothing there.
    """

    case: str
    who: str
    precision: str | None
    before: float
    now: float
    change: float
    noise: float
    slower: bool
    same_machine: bool
    baseline: str
    kind: str = "comparison"


@dataclass(frozen=True)
class End:
    """The run went through: `seconds` it took."""

    seconds: float
    kind: str = "end"


Line = Environment | Result | Target | Comparison | End
KINDS: dict[str, type[Line]] = {
    "environment": Environment, "result": Result, "target": Target, "comparison": Comparison,
    "end": End,
}  # fmt: skip
