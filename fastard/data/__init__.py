"""Image datasets: small ones on the device as uint8, augmented there; large ones from files."""

from __future__ import annotations

from fastard.data.batches import Batch, ImageSet, TrainingSet
from fastard.data.images import Images
from fastard.data.mixed import Mixed
from fastard.data.sources import names
from fastard.data.splits import Splits, load
from fastard.data.streamed import Streamed

__all__ = [
    "Batch", "ImageSet", "Images", "Mixed", "Splits", "Streamed", "TrainingSet", "load", "names",
]  # fmt: skip
