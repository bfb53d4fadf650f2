"""Puts the README's generated tables into the pages that ask for them, so that none is a copy.

A page asks with ``<!-- readme: NAME -->``, the text between the README's marks ``NAME: begin`` and
``NAME: end``, or with ``<!-- readme: missed targets -->``, the cells there that a target missed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"


def part(readme: str, name: str) -> str:
    """The text between two marks; links to files that the site does not hold become plain."""
    found = re.search(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", readme, re.S)
    if found is None:
        raise ValueError(f"the README has no part {name!r}")
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", found[1])


def missed(readme: str) -> str:
    """A list of the README's cells that say "not reached", each with its row and column."""
    lines: list[str] = []
    header: list[str] = []
    for line in readme.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            header = []
        elif not header:
            header = cells
        else:
            lines += [
                f"- {cells[0]}, {column}: {cell}"
                for column, cell in zip(header[1:], cells[1:], strict=True)
                if "not reached" in cell.lower()
            ]
    return "\n".join(lines) or "None."


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with each page's source."""
    readme = README.read_text(encoding="utf-8")

    def filled(mark: re.Match[str]) -> str:
        return missed(readme) if mark[1] == "missed targets" else part(readme, mark[1])

    # Marks for the tests; a comment right above a fence would swallow it.
    markdown = re.sub(r"^<!-- code .*? -->\n", "\n", markdown, flags=re.M)
    return re.sub(r"<!-- readme: (.+?) -->", filled, markdown)
