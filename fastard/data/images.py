"""Labelled images on a device, and the batches drawn from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastard.data.augment import apply_views, decode_views, draw_views, encode_views
from fastard.data.batches import Batch, Pass, Passes


@dataclass(frozen=True, eq=False)
class Images(Passes):
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

    def _count(self) -> int:
        return len(self)

    def _pass(self, asked: Pass) -> Iterator[Batch]:
        kind = asked.kind(self.augment)
        order = asked.order(len(self))
        codes = encode_views(draw_views(len(self), kind, asked.generator))
        # One copy for the whole pass: no transfer, and no wait for one, between batches.
        parts = asked.split(order.to(self.device))
        return self._iterate(parts, codes.to(self.device), moved=kind != "none")

    def _iterate(self, parts: Iterator[Tensor], codes: Tensor, *, moved: bool) -> Iterator[Batch]:
        for index in parts:
            x, view = self.x[index], codes[index]
            if moved:
                x = apply_views(x, decode_views(view))
            yield Batch(to_float(x), self.y[index], index, view)


def to_float(x: Tensor) -> Tensor:
    """Scale uint8 images to float32 in [0, 1], as torchvision's `ToTensor` does."""
    return x.to(torch.float32).div_(255)
