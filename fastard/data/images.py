"""Labelled images on a device, and the batches drawn from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastard.data.augment import apply_views, decode_views, draw_views, encode_views
from fastard.data.batches import Batch, count_batches, draw_order, require_pass


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
        return to_float(self.x if index is None else self.x[index])

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
        return count_batches(len(self), batch_size, drop_last)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        augment: str | None = None,
        drop_last: bool = False,
        start: int = 0,
    ) -> Iterator[Batch]:
        """Yield one pass over the images in batches of `batch_size`.

        All random numbers of the pass are drawn at the call, on the CPU, from `generator` or
        torch's global one: first the order (with `shuffle`), then the view of every image. They
        depend neither on the device nor on the batch size, nor on `start`, the number of batches
        to leave out: a generator in the state of an earlier call gives the rest of its pass, to
        the bit.

        Raises:
            ValueError: `batch_size` is below 1, `start` is not from 0 to `num_batches`, `augment`
                is unknown, or `generator` is not on the CPU.
        """
        total = require_pass(len(self), batch_size, drop_last, start, generator)
        kind = self.augment if augment is None else augment
        order = draw_order(len(self), shuffle, generator)
        codes = encode_views(draw_views(len(self), kind, generator))
        rest = order[start * batch_size : total * batch_size]
        # One copy for the whole pass: no transfer, and no wait for one, between batches.
        return self._iterate(
            rest.to(self.device), codes.to(self.device), batch_size, moved=kind != "none"
        )

    def _iterate(
        self, order: Tensor, codes: Tensor, batch_size: int, *, moved: bool
    ) -> Iterator[Batch]:
        for index in order.split(batch_size) if len(order) else ():
            x, view = self.x[index], codes[index]
            if moved:
                x = apply_views(x, decode_views(view))
            yield Batch(to_float(x), self.y[index], index, view)


def to_float(x: Tensor) -> Tensor:
    """Scale uint8 images to float32 in [0, 1], as torchvision's `ToTensor` does."""
    return x.to(torch.float32).div_(255)
