"""How cost grows along one size."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ..record import Result, Series
from ..record_file import Run
from .curves import Curve, growth
from .document import (
    Cell,
    Number,
    Picture,
    Section,
    Table,
    number,
    slug,
    without_empty_columns,
)  # fmt: skip


def scaling(run: Run) -> Section:
    found = [(r, r.series) for r in run.results if r.group == "scaling"]
    fits: list[list[Cell]] = [[
        result.case, result.who,
        number(series.exponent if series else None, "exponent"),
        number(series.off if series else None, "share"),
        series.over if series else None,
        result.precision, result.device, result.reason or result.unstable,
    ] for result, series in found]  # fmt: skip
    points: list[list[Cell]] = [
        [result.case, result.who, series.over, Number(x, "size"), Number(seconds, "seconds")]
        for result, series in found if series
        for x, seconds in zip(series.x, series.seconds, strict=True)
    ]  # fmt: skip
    columns = ["case", "who", "exponent", "farthest point", "grows with", "precision", "device",
               "remark"]  # fmt: skip
    tables = [
        without_empty_columns(Table("scaling", "Fitted exponents", columns, fits)),
        Table("scaling-points", "Every point", ["case", "who", "along", "size", "fastest"],
              points, True),
    ]  # fmt: skip
    text = ["Lines are fitted to the logarithms of size and time: time grows as the size to the "
            "power of the exponent. The farthest point is a share of the fit there."]  # fmt: skip
    pictures = list(_pictures([(r, s) for r, s in found if s]))
    return Section("scaling", "How cost grows", text, tables, pictures)


def _pictures(found: list[tuple[Result, Series]]) -> Iterable[Picture]:
    cases: dict[str, list[Curve]] = {}
    overs = {result.case: series.over for result, series in found}
    for result, series in found:
        label = f"{result.who}, exponent {Number(series.exponent, 'exponent').text}"
        curve = Curve(label, series.x, series.seconds, series.exponent)
        cases.setdefault(result.case, []).append(curve)
    for case, curves in cases.items():
        yield Picture(slug(f"scaling {case}"), f"{case}: seconds, with the fitted lines.",
                      partial(growth, curves=curves, over=overs[case]))  # fmt: skip
