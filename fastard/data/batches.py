"""What a batch is, and what all sets of images have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
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

    def last_batch(self, batch_size: int) -> int: ...

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        augment: str | None = None,
        drop_last: bool = False,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]: ...


class ImageSet(TrainingSet, Protocol):
    """Images that can also be asked for by position, as an evaluation does."""

    @property
    def y(self) -> Tensor: ...

    def float(self, index: Tensor | slice | None = None) -> Tensor: ...

    def first(self, n: int) -> ImageSet: ...

    def select(self, index: Tensor, *, augment: str | None = None) -> ImageSet: ...

    def to(self, device: str | torch.device) -> ImageSet: ...


@dataclass(frozen=True)
class Pass:
    """What one pass over a set of images was asked to be; `batches` is their whole number."""

    batch_size: int
    batches: int
    start: int
    shuffle: bool
    generator: torch.Generator | None
    augment: str | None
    part: tuple[int, int]

    def kind(self, own: str) -> str:
        """The augmentation of a set whose own one is `own`."""
        return own if self.augment is None else self.augment

    def order(self, count: int) -> Tensor:
        """Draw the order of so many images: int64 [count] on the CPU."""
        if self.shuffle:
            return torch.randperm(count, generator=self.generator)
        return torch.arange(count)

    def split(self, order: Tensor) -> Iterator[Tensor]:
        """This part's rows of every batch, from `start` on."""
        rest = order[self.start * self.batch_size : self.batches * self.batch_size]
        for batch in rest.split(self.batch_size) if len(rest) else ():
            yield batch[self.rows(len(batch))]

    def rows(self, count: int) -> slice:
        """This part's rows of a batch of `count`."""
        rank, world = self.part
        size = count // world
        return slice(rank * size, (rank + 1) * size) if size and world > 1 else slice(0, count)


class Passes:
    """Sets of images that are passed over alike, whatever holds them."""

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        augment: str | None = None,
        drop_last: bool = False,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Yield one pass over the images in batches of `batch_size`.

        All random numbers of the pass are drawn at the call, on the CPU, from `generator` or
        torch's global one: first the order (with `shuffle`), then the views. They depend neither on
        the device nor on `part`, nor on `start`, the number of batches to leave out: a generator in
        the state of an earlier call gives the rest of its pass, to the bit.

        Of `part` (rank, world) only the rows that this one of `world` equal parts has of each batch
        are read and yielded. Of a batch whose size is no multiple of `world` the last rows are left
        out; one of fewer rows is everyone's.

        Raises:
            ValueError: `batch_size` is below 1, `start` is not from 0 to `num_batches`, `augment`
                is unknown, or `generator` is not on the CPU.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size} but must be >= 1")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(
                f"generator is on {generator.device} but must be on the CPU, "
                "so that results do not depend on the device"
            )
        total = self.num_batches(batch_size, drop_last=drop_last)
        if not 0 <= start <= total:
            raise ValueError(
                f"start is {start} but must be from 0 to {total}, the number of batches"
            )
        return self._pass(Pass(batch_size, total, start, shuffle, generator, augment, part))

    def num_batches(self, batch_size: int, *, drop_last: bool = False) -> int:
        """Return how many batches `batches` yields."""
        full, rest = divmod(self._count(), batch_size)
        return full + (rest > 0 and not drop_last)

    def last_batch(self, batch_size: int) -> int:
        """Return how many images the last batch of a pass has."""
        return self._count() % batch_size or batch_size

    @abstractmethod
    def _count(self) -> int:
        """How many images decide the length of a pass."""

    @abstractmethod
    def _pass(self, asked: Pass) -> Iterator[Batch]:
        """Draw a pass and return its batches."""
