"""The code blocks of the documentation, with what the comment in front of each says about it.

`<!-- code not run: REASON -->`        the block is shown only.
`<!-- code small: OLD -> NEW; ... -->` it runs with these words replaced, so as to end in seconds.
`<!-- code same: NAME, ... -->`        both sides of this diff leave these names with equal values;
                                       `small:` may follow.
`<!-- code printed -->`                what the Python block before prints; `printed but for: a, b`
                                       leaves out the lines under these headings, which differ from
                                       machine to machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *DOCS.rglob("*.md"))
)
LANGUAGES = ("python", "sh", "diff", "text")
MARKS = ("", "not run", "small", "same", "printed", "printed but for")


@dataclass(frozen=True)
class Block:
    """A fenced block: a bare fence is the shell's."""

    page: str
    line: int
    language: str
    text: str
    mark: str = ""
    told: str = ""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    def small(self) -> str:
        """The text with the words of its mark replaced."""
        text = self.text
        _, small, changes = f"{self.mark}: {self.told}".partition("small: ")
        for change in filter(None, changes.split(";") if small else []):
            old, arrow, new = change.strip().partition(" ->")
            assert arrow and old in text, f"{self.where}: {old!r} is not in the block"
            text = text.replace(old, new.strip())
        return text


def read(page: str) -> list[Block]:
    return list(blocks_of(page, (ROOT / page).read_text()))


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """The blocks of a page in their order."""
    fence = r"(?:^<!-- code (?P<mark>[^\n]*) -->\n\n?)?^```(?P<language>\S*)\n(?P<text>.*?)^```$"
    for found in re.finditer(fence, text, flags=re.M | re.S):
        mark, _, told = (found["mark"] or "").partition(":")
        line = text.count("\n", 0, found.start("language")) + 1
        yield Block(page, line, found["language"] or "sh", found["text"], mark, told.strip())


def names(block: Block) -> list[str]:
    """The names or headings that a mark tells."""
    return [name.strip() for name in block.told.partition("small:")[0].split(",")]


def sides(diff: str) -> tuple[str, str]:
    """The code before a diff and the code after it."""
    lines = diff.splitlines()
    assert all(line == "" or line[0] in " +-" for line in lines), "a diff's line has no sign"
    before = [line[1:] for line in lines if not line.startswith("+")]
    after = [line[1:] for line in lines if not line.startswith("-")]
    return "\n".join(before), "\n".join(after)


def without(lines: str, headings: list[str]) -> list[str]:
    """Lines of `heading  text`, their blanks evened, but for those under these headings."""
    kept, skipping = [], False
    for line in filter(str.strip, lines.splitlines()):
        if not line.startswith(" "):
            skipping = line.split()[0] in headings
        if not skipping:
            kept.append(" ".join(line.split()))
    return kept


def lines(page: str) -> list[str]:
    return (ROOT / page).read_text().splitlines()
