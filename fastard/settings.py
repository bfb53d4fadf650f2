"""Debug checks and which value checks have been made."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

_debug = False
_checked: weakref.WeakKeyDictionary[Any, set[Hashable]] = weakref.WeakKeyDictionary()


@contextmanager
def debug(enabled: bool = True) -> Iterator[None]:
    """Checks the values of every attack's inputs at every call, also where that synchronises.

    On the CPU values are always checked; on an accelerator otherwise at the first call of a model
    with inputs of one shape and dtype.
    """
    global _debug
    before, _debug = _debug, enabled
    try:
        yield
    finally:
        _debug = before


def check_values(model: Any, key: Hashable, device_type: str) -> bool:
    """Whether this call must look at values."""
    if _debug or device_type == "cpu":
        return True
    try:
        seen = _checked.setdefault(model, set())
    except TypeError:  # a callable that cannot be referenced weakly is checked every time
        return True
    if key in seen:
        return False
    seen.add(key)
    return True
