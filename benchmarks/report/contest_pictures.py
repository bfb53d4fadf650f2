"""Pictures of contests: every contestant beside fastard."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ..record import OURS, Result
from ..record_file import Run
from .cases import BOUNDS, FLOOR, cases, ours, ratio
from .document import Picture, slug
from .pictures import beside


def contestants(run: Run) -> list[str]:
    """fastard, its floor, and every rival in the order of the record."""
    return list(dict.fromkeys([OURS, FLOOR, *(result.who for result in run.results)]))


def pictures(run: Run, group: str, results: list[Result]) -> Iterable[Picture]:
    """One a device and precision: every contestant's time or memory beside fastard's."""
    rows: dict[tuple[str, str | None], dict[str, dict[str, float]]] = {}
    for (case, precision, device), found in cases(results).items():
        own = ours(found)
        marks: dict[str, float] = {}
        for result in found:
            value = ratio(result)
            if value is not None and result.who not in BOUNDS:
                marks[result.who] = min(value, marks.get(result.who, value))
        if own is None or not marks:
            continue
        if own.over_floor:
            marks[FLOOR] = 1 / own.over_floor
        rows.setdefault((device, precision), {})[case] = {OURS: 1.0, **marks}
    what = "peak memory" if group == "memory" else "time"
    for (device, precision), shown in rows.items():
        place = f"{device}, {precision}" if precision else device
        yield Picture(
            slug(f"{group} {place}"),
            f"{what.capitalize()} beside fastard's, {place}: farther to the right takes more.",
            partial(beside, rows=shown, names=contestants(run), axis=f"{what} over fastard's"),
        )
