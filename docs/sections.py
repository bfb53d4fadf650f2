"""Lets the docstrings' sections follow each other without a blank line, as the sources write them."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Sections(griffe.Extension):
    """Puts the blank line that griffe's parser wants in front of each section."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            heading = r"\n(?=(?:Args|Returns|Raises|Attributes):\n)"
            obj.docstring.value = re.sub(heading, "\n\n", obj.docstring.value)
