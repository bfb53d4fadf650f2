"""The report as Markdown and as CSV, the latter a file a table."""

from __future__ import annotations

import csv
import io
import re

from .document import Cell, Document, Number, Table, text


def markdown(document: Document, pictures: dict[str, str]) -> str:
    """The whole report; `pictures` are the files to show, by name."""
    parts = [f"# {escaped(document.title)}", *map(escaped, document.lead)]
    for section in document.sections:
        parts += [f"## {escaped(section.title)}", *map(escaped, section.text)]
        if section.empty:
            parts.append(escaped(section.missing))
        for table in section.tables:
            if table.rows:
                parts += _titled(table)
        for picture in section.pictures:
            parts.append(f"![{escaped(picture.told)}]({pictures[picture.name]})")
    return "\n\n".join(parts) + "\n"


def _titled(table: Table) -> list[str]:
    title, rows = escaped(table.title), "\n".join(markdown_rows(table))
    if table.folded:
        return [f"<details><summary>{title}</summary>", rows, "</details>"]
    return [f"### {title}", rows]


def markdown_rows(table: Table) -> list[str]:
    """A table's lines; columns of figures stand to the right."""
    lines = [map(escaped, table.columns), ["---:" if f else "---" for f in table.figures]]
    lines += [[escaped(text(cell)) for cell in row] for row in table.rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def escaped(words: str) -> str:
    """Words that Markdown takes for nothing but words, on one line."""
    words = re.sub(r"([\\`*\[\]<>|#~&])", r"\\\1", " ".join(words.split()))
    # Between letters an underscore means nothing, and names stay readable.
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", words)


def comma_separated(table: Table) -> str:
    """A table with its figures as the record holds them: seconds, bytes, ratios and shares."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(map(_unformulated, table.columns))
    writer.writerows([_value(cell) for cell in row] for row in table.rows)
    return written.getvalue()


def _value(cell: Cell) -> str:
    return repr(cell.value) if isinstance(cell, Number) else _unformulated(text(cell))


def _unformulated(words: str) -> str:
    """Spreadsheets run what begins like a formula."""
    return f"'{words}" if words.startswith(("=", "+", "-", "@", "\t", "\r")) else words
