"""From seconds to figures: rates, shares, ratios, and which targets were reached."""

from __future__ import annotations

from typing import Any

from .gpu_case import Case

RIVALS = ("eager", "compile")


def figures(case: Case, seconds: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What medians say of one case; `seconds` has an entry for whatever could be timed."""
    size = case.bytes()
    medians = {name: times["median"] for name, times in seconds.items()}
    rates = {name: size / t / 1e9 for name, t in medians.items() if name != "empty"}
    own, copy = medians.get("native"), medians.get("copy")
    found: dict[str, Any] = {
        "bytes": size,
        "seconds": seconds,
        "gigabytes_per_second": rates,
        "share_of_copy": {
            name: copy / t for name, t in medians.items() if copy and name in ("native", "triton")
        },
        "times_faster_than": {
            name: medians[name] / own for name in RIVALS if own and name in medians
        },
    }
    found["targets"] = [
        _target(case, kind, limit, medians, found) for kind, limit in case.targets.items()
    ]
    return found


def _target(
    case: Case, kind: str, limit: float, medians: dict[str, float], found: dict[str, Any]
) -> dict[str, Any]:
    """One line a target; `value` is None, and the target not reached, where nothing was timed."""
    row: dict[str, Any] = {"case": case.name, "target": kind}
    if kind == "launch":
        known = {"native", "copy", "empty"} <= medians.keys()
        most = medians["empty"] + limit * medians["copy"] if known else None
        value = medians.get("native")
        reached = most is not None and value is not None and value <= most
        return {**row, "figure": "seconds", "value": value, "at_most": most, "factor": limit,
                "reached": reached}  # fmt: skip
    if kind == "copy":
        figure, value = "share of the copy bandwidth", found["share_of_copy"].get("native")
    else:
        figure, value = f"times faster than {kind}", found["times_faster_than"].get(kind)
    return {**row, "figure": figure, "value": value, "at_least": limit,
            "reached": value is not None and value >= limit}  # fmt: skip
