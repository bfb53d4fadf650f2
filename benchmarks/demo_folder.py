"""The demo's folder: whose it is, what is cleared from it, and where it was made."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import fastard
from fastard import native
from fastard.files import require_writable_dir, write_json

from .environment import commit, cpu_name

RECORD = "demo.json"
MARK = {"demo": "fastard, handwritten digits"}
PICTURES = ("curves.png", "examples.png")


def prepare(out: Path, runs: Iterable[str]) -> None:
    """Makes `out` ready: an earlier demo's files go, anything else in the folder stays.

    Raises FileExistsError, and changes nothing, when the folder is neither empty nor a demo's.
    """
    if out.is_dir() and any(out.iterdir()) and not _is_demo(out):
        raise FileExistsError(
            f"{out} holds something that is not a demo ({RECORD} is missing or not the demo's): "
            "give another --out or empty it."
        )
    require_writable_dir(out)
    # First of all, so that an interrupted demo is known as one and never shows an older one's
    # results.
    write_json(out / RECORD, {**MARK, "complete": False})
    for name in (*runs, *PICTURES):
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _is_demo(out: Path) -> bool:
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(record, dict) and MARK.items() <= record.items()


def surroundings() -> dict[str, Any]:
    """The commit, the versions and the machine behind a result."""
    return {
        "commit": commit(),
        "versions": {
            "fastard": fastard.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "isa": native.module.cpu_isa() if native.module else native.reason,
            "system": platform.system(),
        },
    }


def relative(path: str) -> str:
    """`path` as seen from the working folder, where it lies inside."""
    inside = os.path.relpath(path)
    return path if inside.startswith(os.pardir) else inside
