"""One HTML page that tells a whole run, pictures included."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import fastard

_PERCENT = ("clean", "robust", "accuracy", "share")


def page(
    *,
    title: str,
    settings: Mapping[str, Any],
    rows: list[dict[str, Any]],
    best: str,
    gap: str,
    pictures: Mapping[str, Path],
) -> str:
    """The page as text; it needs no other file.

    Args:
        settings: shown by name, those that are None left out.
        rows: the metrics, one column a name.
        best: how the best checkpoint was selected.
        gap: a line on robust overfitting, or nothing.
        pictures: PNG files by name; those that do not exist are left out.
    """
    environment = Environment(
        loader=PackageLoader("fastard.training", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["shown"] = _shown
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return environment.get_template("summary.html").render(
        title=title,
        settings={name: value for name, value in settings.items() if value not in (None, [], {})},
        columns=[name for name in columns if name != "selection"],
        rows=rows,
        best=best,
        gap=gap,
        pictures={
            name: base64.b64encode(path.read_bytes()).decode()
            for name, path in pictures.items()
            if path.exists()
        },
        version=fastard.__version__,
    )


def _shown(value: Any, name: str) -> str:
    if isinstance(value, bool):
        return "best" if value else ""
    if isinstance(value, float):
        if name.endswith(_PERCENT):
            return f"{100 * value:.2f} %"
        return f"{value:.4g}"
    return str(value)
