"""The one JSON file that a GPU check fills part by part, so that a kill leaves what was found."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from fastard.files import write_json

NAME = "gpu_check.json"
# A record is to be kept with the project, and says nothing of one machine's folders.
PLACES = (
    (sys.executable, "python"),
    (str(Path(__file__).resolve().parent.parent), "."),
    (tempfile.gettempdir(), "$TMPDIR"),
    (str(Path.home()), "~"),
)


def load(path: Path) -> dict[str, Any]:
    """The record as it stands; {} where there is none yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def put(path: Path, value: Any, *keys: str) -> None:
    """Sets record[keys[0]][keys[1]]... and replaces the file.

    One process writes at a time: the check waits while a step of it does.
    """
    record = load(path)
    place = record
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    place[keys[-1]] = _writable(value)
    write_json(path, record)


def _writable(value: Any) -> Any:
    """JSON has no word for NaN and infinities: theirs stand as text. Folders lose their names."""
    if isinstance(value, str):
        for place, name in PLACES:
            value = value.replace(place, name) if len(place) > 1 else value
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _writable(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_writable(v) for v in value]
    return value
