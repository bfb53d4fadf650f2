"""Arrays of an .npz file without reading it whole."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

LOCAL_HEADER = 30


def open_array(path: str | os.PathLike[str], key: str) -> np.ndarray:
    """Return the array called `key`, mapped from the file where it is stored uncompressed.

    `numpy.savez` stores so; of a compressed file (`numpy.savez_compressed`) the array is read into
    memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or has no such array; the sentence lists those there are.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no .npz file at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist()]
            if key in held:
                return _open_member(path, archive, archive.getinfo(f"{key}.npy"))
    # Damaged bytes surface as any of these.
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError) as error:
        raise ValueError(f"{path} is damaged or no .npz file: {error}") from error
    raise ValueError(f"{path} holds no array {key!r}, but only {', '.join(held) or 'nothing'}")


def _open_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type != zipfile.ZIP_STORED:
        with archive.open(member) as packed:
            return npy.read_array(packed, allow_pickle=False)
    with path.open("rb") as file:
        file.seek(member.header_offset)
        local = file.read(LOCAL_HEADER)
        # The local header's own lengths: its extra field differs from the central directory's.
        name, extra = (int.from_bytes(local[i : i + 2], "little") for i in (26, 28))
        file.seek(member.header_offset + LOCAL_HEADER + name + extra)
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
