"""Original images with synthetic ones in every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastard.data.augment import apply_views, decode_views, draw_views, encode_views
from fastard.data.batches import Batch, Pass, Passes
from fastard.data.images import Images, to_float
from fastard.data.npz import open_array

# wzekai99/DM-Improves-AT draws a share of 0.7 of each batch from the synthetic images.
ORIGINAL_SHARE = 0.3


@dataclass(frozen=True, eq=False)
class Mixed(Passes):
    """Batches of which a share are original images and the rest synthetic ones.

    The synthetic images `x_extra` uint8 [M, H, W, C] and labels `y_extra` [M] may be mapped from a
    file: only what a batch needs is read. Of a batch of B, B - floor(B * (1 - share)) images are
    original ones, each at most once a pass; the synthetic ones are drawn with replacement. A pass
    has as many batches as one over the original images alone: it draws the order of the original
    images, the synthetic ones, and a view for each image of each batch. All of that is as in the
    code of Wang et al. 2023 (arXiv 2302.04638), wzekai99/DM-Improves-AT, whose share is 0.3. In
    `Batch`, the synthetic images are numbered on from the original ones.

    Raises:
        ValueError: shapes, dtypes or labels do not fit the original images, or the share is not
            above 0 and at most 1.
    """

    original: Images
    x_extra: np.ndarray
    y_extra: Tensor
    share: float = ORIGINAL_SHARE

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(
                f"original_share is {self.share} but must be above 0 and at most 1: the share of "
                "original images in a batch"
            )
        _, channels, height, width = self.original.x.shape
        shape = (len(self.y_extra), height, width, channels)
        if self.x_extra.dtype != np.uint8 or self.x_extra.shape != shape or not len(self.y_extra):
            raise ValueError(
                f"the extra images are {self.x_extra.dtype} of shape {list(self.x_extra.shape)} "
                f"but must be uint8 {list(shape)}, a label each and at least one"
            )

    def __len__(self) -> int:
        return len(self.original) + len(self.y_extra)

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.original.device

    @property
    def augment(self) -> str:
        """What `batches` does where it is not told, to original and synthetic images alike."""
        return self.original.augment

    def first(self, n: int) -> Mixed:
        """Return the first `n` original images with all synthetic ones."""
        return replace(self, original=self.original.first(n))

    def last_batch(self, batch_size: int) -> int:
        """Return how many images the last batch of a pass has: synthetic ones fill it up."""
        filled = int(batch_size * (1 - self.share)) > 0
        return batch_size if filled else super().last_batch(batch_size)

    def _count(self) -> int:
        return len(self.original)

    def _pass(self, asked: Pass) -> Iterator[Batch]:
        kind, size = asked.kind(self.augment), asked.batch_size
        ours = size - int(size * (1 - self.share))
        order = asked.order(len(self.original))
        # Where the original images run out, synthetic ones fill the batch.
        most = size if ours < size else 0
        shape = (asked.batches, most)
        theirs = torch.randint(len(self.y_extra), shape, generator=asked.generator)
        views = draw_views(asked.batches * size, kind, asked.generator)
        codes = encode_views(views.view(asked.batches, size, 3))
        return self._iterate(asked, order.split(ours), theirs, codes, moved=kind != "none")

    def _iterate(
        self, asked: Pass, order: Sequence[Tensor], theirs: Tensor, codes: Tensor, *, moved: bool
    ) -> Iterator[Batch]:
        device = self.device
        for step in range(asked.start, asked.batches):
            own = order[step]
            # Sorted, so that the file is read in one direction.
            picked = theirs[step, : codes.shape[1] - len(own)].sort().values
            count, mine = len(own), asked.rows(len(own) + len(picked))
            view = codes[step, mine].to(device)
            own = own[mine]
            picked = picked[max(mine.start - count, 0) : max(mine.stop - count, 0)]
            index = torch.cat([own, picked + len(self.original)]).to(device)
            extra = torch.from_numpy(self.x_extra[picked.numpy()]).permute(0, 3, 1, 2).contiguous()
            own = own.to(device)
            x = torch.cat([self.original.x[own], extra.to(device)])
            y = torch.cat([self.original.y[own], self.y_extra[picked].to(device)])
            yield Batch(
                to_float(apply_views(x, decode_views(view)) if moved else x), y, index, view
            )


def mix(
    original: Images,
    path: str | os.PathLike[str],
    num_classes: int,
    share: float = ORIGINAL_SHARE,
) -> Mixed:
    """Mix `original` with the images of an .npz file: `image` uint8 [N, H, W, C] and `label` [N].

    That is the format of the sets published with wzekai99/DM-Improves-AT and, before it, by
    Rebuffi et al. 2021.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, lacks one of the two, or does not fit the original images.
    """
    image, label = open_array(path, "image"), open_array(path, "label")
    integral = label.ndim == 1 and label.dtype.kind in "iu"
    if not integral or not len(label) or label.min() < 0 or label.max() >= num_classes:
        raise ValueError(
            f"the labels of {Path(path)} are {label.dtype} of shape {list(label.shape)} but must "
            f"be integers from 0 to {num_classes - 1}, in one dimension"
        )
    labels = torch.from_numpy(np.array(label, dtype=np.int64))
    try:
        return Mixed(original, image, labels, share)
    except ValueError as error:
        raise ValueError(f"{Path(path)} does not fit: {error}") from error
