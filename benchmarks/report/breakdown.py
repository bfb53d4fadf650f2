"""Where the time goes: the parts of an attack, and of a training step."""

from __future__ import annotations

from functools import partial

from ..record import Result
from ..record_file import Run
from .document import Cell, Picture, Section, Table, number, without_empty_columns
from .pictures import parts


def breakdown(run: Run) -> Section:
    found = [result for result in run.results if result.group == "breakdown"]
    text = ["The floor is the network's convolutions and matrix products alone, each by the "
            "fastest algorithm at hand: no attack on it can take less."]  # fmt: skip
    title, table = "Where one attack's time goes", parts_table("breakdown", "Its parts", found)
    return Section("breakdown", title, text, [table], parts_picture("breakdown", found))


def with_parts(section: Section, run: Run) -> Section:
    """A section on whole runs, with the parts of those that the record takes apart."""
    found = [r for r in run.results if r.group == section.name and r.breakdown]
    section.tables.insert(1, parts_table(section.name, f"{section.title}: parts", found))
    section.pictures += parts_picture(section.name, found)
    return section


def parts_table(name: str, title: str, found: list[Result]) -> Table:
    names = list(dict.fromkeys(part for result in found for part in result.breakdown or {}))
    rows: list[list[Cell]] = [[
        result.case, number(result.over_floor, "times"),
        *(number((result.breakdown or {}).get(part), "seconds") for part in names),
        number(result.seconds.min if result.seconds else None, "seconds"),
        number(result.floor_seconds, "seconds"), result.who, result.precision, result.device,
        result.reason or result.unstable,
    ] for result in found]  # fmt: skip
    columns = ["case", "over the floor", *names, "whole", "floor", "who", "precision", "device",
               "remark"]  # fmt: skip
    return without_empty_columns(Table(f"{name}-parts", title, columns, rows))


def parts_picture(name: str, found: list[Result]) -> list[Picture]:
    bars = {
        f"{result.case}, {result.who}": result.breakdown for result in found if result.breakdown
    }
    told = "Each part's share of the whole."
    return [Picture(f"{name}-shares", told, partial(parts, bars=bars))] if bars else []
