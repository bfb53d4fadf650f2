"""Strings of a record without what no page, picture or file can hold."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

# Control characters (a crashed rival's message may be coloured) and halves of character pairs.
UNPRINTABLE = re.compile(
    "\x1b\\[[0-9;]*m|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]"
)


def clean(value: Any) -> Any:
    """The value anew, each string in it, however deep, without unprintable characters."""
    if isinstance(value, str):
        return UNPRINTABLE.sub("", value)
    if isinstance(value, dict):
        return {clean(key): clean(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(inner) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return dataclasses.replace(value, **{f.name: clean(getattr(value, f.name)) for f in fields})
    return value
