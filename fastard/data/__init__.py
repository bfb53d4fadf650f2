"""Image datasets kept on the device as uint8, and augmented there a batch at a time."""

from __future__ import annotations

from fastard.data.images import Batch, Images
from fastard.data.sources import names
from fastard.data.splits import Splits, load

__all__ = ["Batch", "Images", "Splits", "load", "names"]
