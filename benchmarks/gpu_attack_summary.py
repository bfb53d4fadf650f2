"""What a GPU check's whole attacks and training steps amount to: ratios with their targets.

A ratio that was not measured has not reached its target.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

PUBLISHED = {("resnet18", "tf32"): 4.0, ("resnet18", "bf16"): 8.0,
             ("mobilenetv2", "tf32"): 6.0, ("mobilenetv2", "bf16"): 10.0}  # fmt: skip
COMPILE, FLOOR, STEP = 1.3, 1.25, 4.0


def _medians(record: dict[str, Any], part: str, case: str) -> dict[str, float]:
    return record.get(part, {}).get("cases", {}).get(case, {}).get("median_seconds", {})


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _row(case: str, figure: str, value: float | None, bound: float, most: bool) -> dict[str, Any]:
    reached = value is not None and (value <= bound if most else value >= bound)
    return {"case": case, "target": "most" if most else "least", "figure": figure, "value": value,
            "at_most" if most else "at_least": bound, "reached": reached}  # fmt: skip


def against_compile(record: dict[str, Any], network: str, precision: str) -> float | None:
    """The least ratio of any compiled rival to fastard beside it; each was timed in its turns."""
    found = []
    for case, rival in record.get("attack rivals", {}).get("cases", {}).items():
        if case.startswith(f"{network} {precision} ") and "median_seconds" in rival:
            seconds = rival["median_seconds"]
            found.append(seconds["compile"] / seconds[f"fastard {precision}"])
    return min(found, default=None)


def targets(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for (network, precision), least in PUBLISHED.items():
        case, seconds = f"PGD-10 {network} {precision}", _medians(record, "attack", network)
        own = seconds.get(f"fastard {precision}")
        yield _row(case, "times faster than the published loop",
                   _ratio(seconds.get("published"), own), least, False)  # fmt: skip
        yield _row(case, "times faster than the fastest torch.compile",
                   against_compile(record, network, precision), COMPILE, False)  # fmt: skip
        yield _row(case, "of the floor's time", _ratio(own, seconds.get(f"floor {precision}")),
                   FLOOR, True)  # fmt: skip
    seconds = _medians(record, "training step", "rslad resnet18")
    whole = _ratio(seconds.get("published"), seconds.get("fastard bf16"))
    yield _row("RSLAD step bf16", "times faster than the published step", whole, STEP, False)


def lines(record: dict[str, Any]) -> Iterator[str]:
    """Every median, and rivals that were refused or left out."""
    for part in ("attack", "attack rivals", "training step"):
        for case, found in record.get(part, {}).get("cases", {}).items():
            told = [f"{n} {1e3 * s:.1f} ms" for n, s in found.get("median_seconds", {}).items()]
            yield f"{part}, {case}: {', '.join(told) or found.get('refused', 'not timed')}"
        for case in record.get(part, {}).get("left_out", ()):
            yield f"{part}, {case}: left out, no time was left"
