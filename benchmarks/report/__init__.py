"""A result file as a report: one HTML page, Markdown, CSV, and pictures for the README."""

from __future__ import annotations

import os
from pathlib import Path

from fastard.files import atomic_path, require_writable_dir

from .. import record_file
from .clean import clean
from .contents import document
from .drawn import png
from .html import page
from .plain import comma_separated, markdown

__all__ = ["write"]


def write(result_file: str | os.PathLike[str], out_dir: str | os.PathLike[str]) -> list[Path]:
    """The report on a run, into a folder: report.html first, then report.md, csv/ and png/.

    Raises:
        FileNotFoundError: there is no such result file.
        ValueError: it is none, or one of another schema.
        NotADirectoryError, PermissionError: the folder cannot be made or written.
    """
    found = document(clean(record_file.read(Path(result_file))))
    out = require_writable_dir(out_dir)
    folders = [require_writable_dir(out / name) for name in ("csv", "png")]
    written = [_written(out / "report.html", page(found))]
    files = {picture.name: f"png/{picture.name}.png" for picture in found.pictures}
    written.append(_written(out / "report.md", markdown(found, files)))
    for table in found.tables:
        written.append(_written(folders[0] / f"{table.name}.csv", comma_separated(table)))
    return written + [png(picture, out / files[picture.name]) for picture in found.pictures]


def _written(path: Path, text: str) -> Path:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
