"""Lets the sections of a docstring follow each other without a blank line, as ours do."""

from __future__ import annotations

import re
from typing import Any

import griffe


def spaced(docstring: str) -> str:
    """The docstring as griffe's parser wants it: blank lines between sections, one return value."""
    heading = r"\n(?=(?:Args|Returns|Raises|Attributes):\n)"
    docstring = re.sub(heading, "\n\n", docstring)
    # Lines under "Returns:" are one sentence; the parser takes each for a value unless indented.
    returns = re.search(r"^Returns:\n    .*((?:\n    .*)*)", docstring, flags=re.M)
    if returns is None:
        return docstring
    start, end = returns.span(1)
    return docstring[:start] + returns[1].replace("\n", "\n    ") + docstring[end:]


class Sections(griffe.Extension):
    """Hands griffe every docstring so spaced."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = spaced(obj.docstring.value)
