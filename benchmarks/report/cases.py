"""The record's lines, case by case."""

from __future__ import annotations

from collections.abc import Iterable

from ..record import OURS, Result

# Bounds, not rivals: they have columns of their own.
FLOOR = "floor"
BOUNDS = ("copy_", FLOOR)
STATES = {
    "unavailable": "not available", "failed": "failed", "disagrees": "disagrees",
    "skipped": "left out",
}  # fmt: skip

Key = tuple[str, str | None, str]


def cases(results: list[Result]) -> dict[Key, list[Result]]:
    """The contestants of each case, precision by precision and device by device."""
    grouped: dict[Key, list[Result]] = {}
    for result in results:
        grouped.setdefault((result.case, result.precision, result.device), []).append(result)
    return grouped


def ours(results: Iterable[Result]) -> Result | None:
    return next((result for result in results if result.who == OURS), None)


def ratio(result: Result) -> float | None:
    return result.memory_ratio if result.group == "memory" else result.ratio


def shaky(found: Iterable[Result]) -> dict[str, str]:
    """Why figures are not stable, with the contestants of whom that is said."""
    reasons: dict[str, list[str]] = {}
    for result in found:
        if result.stable is False:
            who = result.who if result.variant is None else f"{result.who} ({result.variant})"
            reasons.setdefault(result.unstable or "not said why", []).append(who)
    return {why: ", ".join(names) for why, names in reasons.items()}
