"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["atomic_path", "require_writable_dir", "write_json"]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` and rename it to `path` when the block succeeds.

    The temporary name keeps the suffix of `path`, because many writers choose their format by it.
    When the block raises, the temporary file is removed and `path` stays as it was. The file has
    the permissions of any new one, whatever its writer gave it.

    Raises:
        FileNotFoundError: the folder does not exist, or the block wrote nothing.
        NotADirectoryError: the folder is a file.
    """
    target = Path(path)
    if not target.parent.is_dir():
        if target.parent.exists():
            raise NotADirectoryError(f"cannot write {target}: {target.parent} is no folder")
        raise FileNotFoundError(f"cannot write {target}: the folder {target.parent} does not exist")
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.tmp{target.suffix}")
    try:
        # The umask can be asked for by setting it alone, which other threads would notice.
        temporary.touch()
        mode = temporary.stat().st_mode
        temporary.unlink()
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"nothing was written to {temporary}, so {target} was not made")
        temporary.chmod(mode)
        _flush(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` to `path` as indented JSON, atomically.

    Paths become strings; numpy values and tensors become numbers and lists. NaN and infinities are
    refused, because JSON has no word for them.

    Raises:
        TypeError: `obj` holds something that JSON cannot express.
        ValueError: `obj` holds a NaN or an infinity.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=_to_plain)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def require_writable_dir(path: str | os.PathLike[str]) -> Path:
    """Make the folder `path` where it is missing and return it once a file could be written in it.

    Raises:
        NotADirectoryError: `path` or one of its parents is a file.
        PermissionError: the folder cannot be made or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A trial write, because permission bits say nothing of read-only mounts and quotas.
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"the output folder {folder} cannot be used: it or one of its parents is a file"
        ) from error
    except OSError as error:
        raise PermissionError(
            f"the output folder {folder} is not writable: {error.strerror or error}"
        ) from error


def _flush(path: Path) -> None:
    # Without this a power cut after the rename can leave the new name on an empty file.
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _to_plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")
