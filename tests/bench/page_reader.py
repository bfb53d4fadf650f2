"""A report's page as a test sees it: its tables, its words, and the words in its pictures."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "link", "br", "img", "input"}
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)*")


@dataclass
class Table:
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    values: list[list[str | None]] = field(default_factory=list)


class Page(HTMLParser):
    """`tables` by name; `words` outside of tables; `pictures`: words that are no axis' ticks."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, Table] = {}
        self.words: list[str] = []
        self.pictures: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.table: Table | None = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append((tag, attributes))
        if tag == "table":
            self.table = self.tables.setdefault(attributes["aria-labelledby"], Table())
        elif tag == "tr" and self.within("tbody"):
            self.table.rows.append([])
            self.table.values.append([])
        elif tag in ("td", "th") and self.within("tbody"):
            self.table.rows[-1].append("")
            self.table.values[-1].append(attributes.get("data-value"))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag
        if tag == "table":
            self.table = None

    def handle_data(self, data):
        if self.within("script") or self.within("style") or not data.strip():
            return
        if self.within("svg"):
            if not any("tick_" in (attributes.get("id") or "") for _, attributes in self.open):
                self.pictures.append(data.strip())
        elif self.within("tbody"):
            self.table.rows[-1][-1] += data
        elif self.within("thead"):
            self.table.head.append(data)
        else:
            self.words.append(data.strip())

    def within(self, tag: str) -> bool:
        return any(name == tag for name, _ in self.open)


def record(path: Path) -> tuple[set[float], set[str]]:
    """Every number of a result file, and every number that its strings and keys spell."""
    numbers: set[float] = set()
    spelt: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(key)
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)
        elif isinstance(value, str):
            spelt.update(NUMBER.findall(value))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers.add(value)

    for line in path.read_text().splitlines():
        walk(json.loads(line))
    return numbers, spelt


UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "%": 0.01, "B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20,
         "GiB": 2.0**30, "GB/s": 1e9, "GFLOP/s": 1e9, "×": 1.0, "": 1.0}  # fmt: skip


def shows(words: str, value: float) -> bool:
    """Whether a cell's words are the value, rounded to the digits that they have."""
    found = re.fullmatch(r"(-?[\d.]+(?:e[+-]?\d+)?) ?([^\d\s]*)", words)
    assert found, words
    digits, unit = found.groups()
    mantissa, _, power = digits.partition("e")
    step = 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
    return abs(float(digits) - value / UNITS[unit]) <= 0.51 * step


def strangers(page: Page, path: Path) -> list[str]:
    """Numbers on the page that the result file does not hold."""
    numbers, spelt = record(path)
    known, bad = {f"{n:g}" for n in numbers} | spelt, []
    for name, table in page.tables.items():
        for row, values in zip(table.rows, table.values, strict=True):
            for words, value in zip(row, values, strict=True):
                if value is None:
                    bad += [f"{name}: {n}" for n in NUMBER.findall(words) if n not in known]
                elif float(value) not in numbers or not shows(words, float(value)):
                    bad.append(f"{name}: {words} for {value}")
                else:
                    known |= set(NUMBER.findall(words))
    for words in page.words + page.pictures:
        bad += [f"{words}: {n}" for n in NUMBER.findall(words) if n not in known]
    return bad


def markdown_tables(text: str) -> list[Table]:
    """The tables of a Markdown text, backslashes taken away."""
    tables = []
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        cells = [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in rows]
        tables.append(Table(cells[0], cells[2:]))
    return tables


def csv_table(path: Path) -> Table:
    head, *rows = csv.reader(path.read_text().splitlines(keepends=True))
    return Table(head, rows)
