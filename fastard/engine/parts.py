"""How many parts a batch is run in on the CPU: as large as caches and allocator take well."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastard.engine.layers import Segment

if TYPE_CHECKING:
    from fastard.engine.plan import Plan

# One layer's input and output together. Beyond some such size they leave the last cache, and
# glibc hands their pages back between layers: MobileNetV2 gained a sixth by two parts of 19 MB,
# nothing by smaller ones, and parts of few images lose.
LARGE_BYTES = 20 << 20
FEWEST = 16


class Parts:
    """The number of parts for each batch size."""

    def __init__(self, plan: Plan) -> None:
        layers = [v for v in plan.network.layers if not isinstance(v, Segment) and v.inputs]
        widest = max(
            (sum(math.prod(v.meta["shape"][1:]) for v in (w.inputs[0], w.output)) for w in layers),
            default=0,
        )
        self.bytes_an_image = widest * plan.dtype.itemsize
        # Until it is known that a sample's logits do not depend on the others'.
        self.possible = False

    def of(self, batch: int) -> int:
        """The number of parts that so many images are run in."""
        if not self.possible:
            return 1
        count = -(-batch * self.bytes_an_image // LARGE_BYTES)
        return max(1, min(count, batch // FEWEST))

    def look(self, plan: Plan, feed: Tensor) -> None:
        """Allows parts if a small batch gives the same in two of them, on the CPU."""
        if plan.device.type != "cpu" or len(feed) < 2:
            return
        whole = plan.infer(feed)
        split = torch.cat([plan.infer(part) for part in feed.chunk(2)])
        self.possible = bool(torch.allclose(whole, split, rtol=1e-3, atol=1e-5))
