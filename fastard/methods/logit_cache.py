"""The teachers' logits of augmented clean images, kept for when the same view comes again."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

VIEWS = 162
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
EMPTY = -1


class LogitCache:
    """Remembers logits by image and view: ``method.cache = LogitCache(len(splits.train))``.

    A crop with padding 4 and a flip have 162 views; over 300 epochs an image shows about 137 of
    them, so that more than half of a teacher's forward passes repeat an earlier one. The teacher is
    asked for the rows of a batch that are missing, and what it answers is kept until the memory is
    full; then nothing more is inserted. Nothing is evicted, since every view of an image is as
    likely to come next as any other.

    What is kept in the logits' own dtype comes back to the bit. A run with the cache is then equal
    to one without wherever the teacher's answer to an image does not depend on how many others are
    in its batch; a kernel that is chosen by the batch size may round otherwise.

    Args:
        images: how many training images there are; indices are below this number.
        max_bytes: of logits and the table of `4 * 162 * images` bytes that finds them.
        dtype: float32, float16, bfloat16, or None: as the teacher answers.
        folder: keeps the logits in a file there, mapped into memory and without a name, so that it
            vanishes with the process; None: on the logits' device.

    Raises ValueError where `max_bytes` does not hold the table, TypeError for another dtype.
    """

    def __init__(
        self,
        images: int,
        *,
        max_bytes: int = 2**30,
        dtype: torch.dtype | None = None,
        folder: str | os.PathLike[str] | None = None,
    ):
        if dtype is not None and dtype not in DTYPES:
            raise TypeError(f"dtype must be float32, float16, bfloat16 or None, but is {dtype}.")
        if images < 1:
            raise ValueError(f"images must be at least 1, but is {images}.")
        self._table_bytes = self.table_bytes(images)
        if max_bytes <= self._table_bytes:
            raise ValueError(
                f"max_bytes must be above {self._table_bytes}, the table for {images} images of "
                f"{VIEWS} views, but is {max_bytes}."
            )
        self.images, self.max_bytes, self.dtype = images, max_bytes, dtype
        self.folder = None if folder is None else Path(folder)
        self.hits = self.misses = self.stored = 0
        self._slots: Tensor | None = None
        self._rows: Tensor | None = None

    @staticmethod
    def table_bytes(images: int) -> int:
        """What the table that finds the logits of so many images takes."""
        return 4 * VIEWS * images

    @property
    def capacity(self) -> int:
        """How many rows fit; 0 before the first logits are known."""
        return 0 if self._rows is None else len(self._rows)

    @property
    def bytes(self) -> int:
        """What is allocated."""
        if self._rows is None:
            return 0
        return self._table_bytes + self._rows.numel() * self._rows.element_size()

    @property
    def hit_rate(self) -> float:
        """The share of rows that were found, since the cache was made."""
        return self.hits / max(1, self.hits + self.misses)

    def logits(
        self, x: Tensor, index: Tensor, view: Tensor, ask: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Returns the logits [B, C] of x [B, ...], from `ask(rows of x)` where they are missing.

        Equivalent to: ``ask(x)``.

        Args:
            index, view: [B] the image and the code of the view that each row of x is.
            ask: gives the logits of a batch of images, a row for each.

        Raises ValueError for an index or view out of range, or logits of another width than before.
            Reads a few numbers from the device.
        """
        keys = self._keys(x, index, view)
        if self._slots is None:
            self._slots = torch.full(
                (self.images * VIEWS,), EMPTY, dtype=torch.int32, device=keys.device
            )
        slots = self._slots[keys]
        (absent,) = torch.nonzero(slots == EMPTY, as_tuple=True)
        self.hits += len(x) - len(absent)
        self.misses += len(absent)
        if len(absent) == len(x):
            answered = ask(x)
            self._insert(keys, answered)
            return answered
        assert self._rows is not None
        found = self._rows[slots.clamp(min=0).long().to(self._rows.device)]
        found = found.to(x.device, self._answer_dtype)
        if len(absent):
            answered = ask(x[absent])
            self._insert(keys[absent], answered)
            found[absent] = answered.to(found.dtype)
        return found

    def _keys(self, x: Tensor, index: Tensor, view: Tensor) -> Tensor:
        for name, t, most in (("index", index, self.images), ("view", view, VIEWS)):
            if not isinstance(t, Tensor) or t.shape != x.shape[:1] or t.is_floating_point():
                given = list(t.shape) if isinstance(t, Tensor) else type(t).__name__
                raise ValueError(
                    f"{name} must be integers [{len(x)}], one for each image, for the logit cache, "
                    f"but is {given}."
                )
            low, high = (int(v) for v in torch.aminmax(t))
            if low < 0 or high >= most:
                why = "; this augmentation has no views that come again" if low < 0 else ""
                raise ValueError(
                    f"{name} must lie in [0, {most}) for the logit cache, but spans "
                    f"[{low}, {high}]{why}."
                )
        return index.to(torch.int64) * VIEWS + view

    def _insert(self, keys: Tensor, logits: Tensor) -> None:
        if self._rows is None:
            self._allocate(logits)
        assert self._rows is not None and self._slots is not None
        if logits.shape[1] != self._rows.shape[1]:
            raise ValueError(
                f"the logits must have {self._rows.shape[1]} columns, as those in the cache, but "
                f"have {logits.shape[1]}."
            )
        count = min(len(keys), self.capacity - self.stored)
        places = torch.arange(self.stored, self.stored + count)
        self._rows[self.stored : self.stored + count] = logits[:count].to(
            self._rows.device, self._rows.dtype
        )
        self._slots[keys[:count]] = places.to(self._slots.device, torch.int32)
        self.stored += count

    def _allocate(self, logits: Tensor) -> None:
        self._answer_dtype = logits.dtype
        dtype = self.dtype or logits.dtype
        width = logits.shape[1]
        fitting = (self.max_bytes - self._table_bytes) // (width * dtype.itemsize)
        rows = min(fitting, self.images * VIEWS)
        if self.folder is None:
            self._rows = torch.empty(rows, width, dtype=dtype, device=logits.device)
        else:
            self._rows = mapped(self.folder, rows * width, dtype).view(rows, width)


def mapped(folder: Path, count: int, dtype: torch.dtype) -> Tensor:
    """Returns `count` numbers on the CPU that lie in a nameless file in `folder`.

    Raises OSError where the folder cannot be written or has no room.
    """
    size = count * dtype.itemsize
    with tempfile.TemporaryFile(dir=folder) as file:
        if size == 0:
            return torch.empty(0, dtype=dtype)
        # Claimed now: on a full disk, a later write into the mapping would kill the process.
        os.posix_fallocate(file.fileno(), 0, size)
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype)
