"""What a batch is, and what all sets of images have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

NO_VIEW = -1


class Batch(NamedTuple):
    """Images x float32 [B, C, H, W] in [0, 1], labels y int64 [B], and where they come from.

    `index` int64 [B] is each image's position in its set. `view` int64 [B] is the code of its crop
    and flip (`fastard.data.augment`), or -1 for an augmentation whose results never come again.
    """

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    view: Tensor


class TrainingSet(Protocol):
    """Images to train on: in memory, streamed from files, or mixed."""

    def __len__(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def augment(self) -> str: ...

    def first(self, n: int) -> TrainingSet: ...

    def num_batches(self, batch_size: int, *, drop_last: bool = False) -> int: ...

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        augment: str | None = None,
        drop_last: bool = False,
        start: int = 0,
    ) -> Iterator[Batch]: ...


class ImageSet(TrainingSet, Protocol):
    """Images that can also be asked for by position, as an evaluation does."""

    @property
    def y(self) -> Tensor: ...

    def float(self, index: Tensor | slice | None = None) -> Tensor: ...

    def first(self, n: int) -> ImageSet: ...

    def select(self, index: Tensor, *, augment: str | None = None) -> ImageSet: ...

    def to(self, device: str | torch.device) -> ImageSet: ...


def count_batches(count: int, batch_size: int, drop_last: bool) -> int:
    """Return how many batches `count` images fill."""
    full, rest = divmod(count, batch_size)
    return full + (rest > 0 and not drop_last)


def draw_order(count: int, shuffle: bool, generator: torch.Generator | None) -> Tensor:
    """Return the order of a pass: int64 [count] on the CPU."""
    return torch.randperm(count, generator=generator) if shuffle else torch.arange(count)


def require_pass(
    count: int, batch_size: int, drop_last: bool, start: int, generator: torch.Generator | None
) -> int:
    """Check the arguments of `batches` and return how many batches the whole pass has.

    Raises:
        ValueError: `batch_size` is below 1, `start` is not from 0 to the number of batches, or
            `generator` is not on the CPU.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size} but must be >= 1")
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"generator is on {generator.device} but must be on the CPU, "
            "so that results do not depend on the device"
        )
    total = count_batches(count, batch_size, drop_last)
    if not 0 <= start <= total:
        raise ValueError(f"start is {start} but must be from 0 to {total}, the number of batches")
    return total
