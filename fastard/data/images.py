"""Labelled images on a device, and the batches drawn from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastard.data.augment import apply_views, draw_views


class Batch(NamedTuple):
    """Images x float32 [B, C, H, W] in [0, 1], labels y int64 [B], and where they come from.

    `index` int64 [B] is each image's position in its `Images`, `view` int64 [B, 3] the
    (crop_y, crop_x, flip) that was drawn for it.
    """

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    view: Tensor


@dataclass(frozen=True, eq=False)
class Images:
    """Images x uint8 [N, C, H, W] and labels y int64 [N] on one device.

    `augment` is what `batches` does where it is not told: "none", "crop" or "crop-flip".

    Raises:
        ValueError: shapes, dtypes or devices are not as above.
    """

    x: Tensor
    y: Tensor
    augment: str = "none"

    def __post_init__(self) -> None:
        if self.x.dtype != torch.uint8 or self.x.ndim != 4:
            raise ValueError(
                f"images are {self.x.dtype} of shape {list(self.x.shape)} "
                "but must be uint8 [N, C, H, W]"
            )
        if self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1]:
            raise ValueError(
                f"labels are {self.y.dtype} of shape {list(self.y.shape)} "
                f"but must be int64 [{len(self.x)}]"
            )
        if self.x.device != self.y.device:
            raise ValueError(
                f"images are on {self.x.device} and labels on {self.y.device} "
                "but must be on one device"
            )

    def __len__(self) -> int:
        return len(self.y)

    @property
    def device(self) -> torch.device:
        """The device that holds the images."""
        return self.x.device

    def to(self, device: str | torch.device) -> Images:
        """Return the same images on `device`."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def float(self, index: Tensor | slice | None = None) -> Tensor:
        """Return the images, or those at `index`, as float32 in [0, 1].

        Equivalent to: torchvision's `ToTensor` on each, to the bit.
        """
        return _to_float(self.x if index is None else self.x[index])

    def first(self, n: int) -> Images:
        """Return the first `n` images in dataset order, or all where there are fewer.

        Raises:
            ValueError: `n` is negative.
        """
        if n < 0:
            raise ValueError(f"n is {n} but must be >= 0")
        return replace(self, x=self.x[:n], y=self.y[:n])

    def select(self, index: Tensor, *, augment: str | None = None) -> Images:
        """Return the images at `index` int64 [M], in that order."""
        index = index.to(self.device)
        kind = self.augment if augment is None else augment
        return Images(self.x[index], self.y[index], kind)

    def num_batches(self, batch_size: int, *, drop_last: bool = False) -> int:
        """Return how many batches `batches` yields."""
        full, rest = divmod(len(self), batch_size)
        return full + (rest > 0 and not drop_last)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        augment: str | None = None,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """Yield one pass over the images in batches of `batch_size`.

        All random numbers of the pass are drawn at the call, on the CPU, from `generator` or
        torch's global one: first the order (with `shuffle`), then the view of every image. They
        depend neither on the device nor on the batch size.

        Raises:
            ValueError: `batch_size` is below 1, `augment` is unknown, or `generator` is not on the
                CPU.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size} but must be >= 1")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(
                f"generator is on {generator.device} but must be on the CPU, "
                "so that results do not depend on the device"
            )
        kind = self.augment if augment is None else augment
        count = len(self)
        order = torch.randperm(count, generator=generator) if shuffle else torch.arange(count)
        views = draw_views(count, kind, generator)
        # One copy for the whole pass: no transfer, and no wait for one, between batches.
        order, views = order.to(self.device), views.to(self.device)
        stop = count - count % batch_size if drop_last else count
        return self._iterate(order[:stop], views, batch_size, moved=kind != "none")

    def _iterate(
        self, order: Tensor, views: Tensor, batch_size: int, *, moved: bool
    ) -> Iterator[Batch]:
        for index in order.split(batch_size) if len(order) else ():
            x, view = self.x[index], views[index]
            yield Batch(_to_float(apply_views(x, view) if moved else x), self.y[index], index, view)


def _to_float(x: Tensor) -> Tensor:
    return x.to(torch.float32).div_(255)
