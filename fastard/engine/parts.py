"""How many parts a batch is run in on the CPU: as large as caches and allocator take well."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastard.engine.layers import Segment

if TYPE_CHECKING:
    from fastard.engine.plan import Plan

# One layer's input and output together. Beyond some such size they leave the last cache, and
# glibc hands their pages back between layers; which of the two ways is faster is then measured.
LARGE_BYTES = 20 << 20
FEWEST = 4


class Parts:
    """The number of parts for each batch size, measured at its first use and remembered."""

    def __init__(self, plan: Plan) -> None:
        layers = [v for v in plan.network.layers if not isinstance(v, Segment) and v.inputs]
        widest = max(
            (sum(math.prod(v.meta["shape"][1:]) for v in (w.inputs[0], w.output)) for w in layers),
            default=0,
        )
        self.bytes_an_image = widest * plan.dtype.itemsize
        self.known: dict[int, int] = {}
        self.possible = plan.device.type == "cpu"

    def of(self, plan: Plan, feed: Tensor) -> int:
        """The number of parts that a batch like feed is run in."""
        batch = len(feed)
        found = self.known.get(batch)
        if found is None:
            found = self.known[batch] = self._measured(plan, feed)
        return found

    def _measured(self, plan: Plan, feed: Tensor) -> int:
        count = -(-len(feed) * self.bytes_an_image // LARGE_BYTES)
        count = min(count, len(feed) // FEWEST)
        if not self.possible or count < 2:
            return 1
        whole, split = run(plan, feed, 1), run(plan, feed, count)
        if not torch.allclose(whole[1], split[1], rtol=1e-3, atol=1e-4):
            return 1  # its samples depend on each other
        times = {n: min(run(plan, feed, n)[0] for _ in range(2)) for n in (1, count)}
        return min(times, key=lambda n: times[n])


def run(plan: Plan, feed: Tensor, count: int) -> tuple[float, Tensor]:
    """Seconds of a forward and input gradient in so many parts, and the logits."""
    begun = time.perf_counter()
    made = [plan.forward(part) for part in feed.chunk(count)]
    for logits, record in made:
        plan.backward(record, torch.ones_like(logits))
    return time.perf_counter() - begun, torch.cat([logits for logits, _ in made])
