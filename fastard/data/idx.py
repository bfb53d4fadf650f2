"""MNIST's idx files: plain, or packed as .gz or .xz."""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Of the four files of MNIST: their names, and the number of dimensions that their headers tell.
TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
OPENERS: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".xz": lzma.open}
DAMAGED = (EOFError, OSError, lzma.LZMAError, zlib.error)


def find(root: Path, folder: str, name: str) -> Path | None:
    """Return the file called `name`, plain or packed, in `root / folder` or in `root` itself."""
    for place in (root / folder, root):
        for suffix in OPENERS:
            if (path := place / f"{name}{suffix}").is_file():
                return path
    return None


def read_pair(images: Path, labels: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [N, H, W] and their labels uint8 [N].

    Raises:
        ValueError: a file is damaged, or the two do not belong together.
    """
    x, y = read(images, 3), read(labels, 1)
    if len(x) != len(y):
        raise ValueError(f"{images} holds {len(x)} images, but {labels} holds {len(y)} labels")
    if len(y) and int(y.max()) >= classes:
        raise ValueError(
            f"{labels} is damaged: it holds the label {y.max()}, but there are {classes} classes"
        )
    return x, y


def read(path: str | os.PathLike[str], dimensions: int) -> np.ndarray:
    """Return the uint8 array of an idx file with so many dimensions.

    Raises:
        ValueError: the file is damaged or holds something else.
    """
    path = Path(path)
    try:
        with OPENERS[path.suffix if path.suffix in OPENERS else ""](path, "rb") as file:
            content = file.read()
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(
            f"{path} is damaged: it does not begin as an idx file of bytes in {dimensions} "
            f"dimension{'s' if dimensions > 1 else ''}"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise ValueError(
            f"{path} is damaged: it has {len(content)} bytes but must have {expected} for "
            f"{' x '.join(map(str, shape))}"
        )
    # A copy, because torch wants memory that it may write.
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
