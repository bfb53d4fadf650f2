"""What a report says, before it is HTML, Markdown or CSV: sections of tables and pictures."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from matplotlib.figure import Figure

from .palette import Palette
from .shown import SHOWN

VERDICTS = {True: "reached", False: "not reached", None: "not measured here"}


@dataclass(frozen=True)
class Number:
    """A figure as the record holds it; `kind` says in which unit and how exactly it is shown."""

    value: float
    kind: str = "plain"

    @property
    def text(self) -> str:
        return SHOWN[self.kind](self.value)


@dataclass(frozen=True)
class Verdict:
    """Whether a target was reached; None where this run did not measure it."""

    reached: bool | None

    @property
    def text(self) -> str:
        return VERDICTS[self.reached]


Cell = str | Number | Verdict | None


@dataclass
class Table:
    """Rows under named columns; `name` is its file's and its anchor.

    A `folded` table is shown when it is asked for, where the format can.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    folded: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.name}: {len(row)} cells, {len(self.columns)} columns"
                )

    @property
    def figures(self) -> list[bool]:
        """Which columns hold figures rather than words."""
        found = []
        for k in range(len(self.columns)):
            cells = [row[k] for row in self.rows if text(row[k])]
            found.append(2 * sum(isinstance(c, Number) for c in cells) >= max(1, len(cells)))
        return found


@dataclass
class Picture:
    """A matplotlib figure in the colours it is given; `told` says in words what it shows."""

    name: str
    told: str
    draw: Callable[[Palette], Figure]


@dataclass
class Section:
    """One heading of the report; `missing` is said where nothing stands under it."""

    name: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    missing: str = "This run did not measure it."

    @property
    def empty(self) -> bool:
        return not any(table.rows for table in self.tables) and not self.pictures


@dataclass
class Document:
    title: str
    lead: list[str]
    sections: list[Section]

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables if table.rows]

    @property
    def pictures(self) -> list[Picture]:
        return [picture for section in self.sections for picture in section.pictures]


def number(value: Any, kind: str = "plain") -> Number | None:
    """A cell of what the record holds under a key that may be missing."""
    return None if value is None else Number(value, kind)


def slug(words: str) -> str:
    """Words as a file's name and an anchor."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "unnamed"


def without_empty_columns(table: Table) -> Table:
    """The table without columns in which no row has anything."""
    kept = [k for k in range(len(table.columns)) if any(text(row[k]) for row in table.rows)]
    rows = [[row[k] for k in kept] for row in table.rows]
    return replace(table, columns=[table.columns[k] for k in kept], rows=rows)


def text(cell: Cell) -> str:
    """A cell as every format shows it."""
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else cell.text
