"""Square Attack's setting, and how large its windows are at each query."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from fastard.kinds import Norm

# After how many queries, of 10,000, the share p halves once more.
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class Squares:
    """What a run of Square does.

    Attributes:
        eps: radius, a number or one per sample.
        n_queries: proposals a run, after the start's query.
        p_init: the first windows' share of the pixels.
        ce: judge by the cross-entropy, not the margin; a targeted attack always does.
        targeted: y are the classes to reach.
        rescaled: the windows shrink as over 10,000 queries, else after so many of them.
    """

    norm: Norm
    eps: float | Tensor
    n_queries: int = 5000
    p_init: float = 0.8
    ce: bool = False
    targeted: bool = False
    rescaled: bool = False
    clip_min: float = 0.0
    clip_max: float = 1.0

    def of(self, index: Tensor) -> Squares:
        """The setting of the samples at `index`."""
        if isinstance(self.eps, Tensor) and self.eps.numel() > 1:
            return replace(self, eps=self.eps[index])
        return self

    def require_fits(self, x: Tensor) -> None:
        """Raises ValueError where x cannot be attacked so."""
        if x.dim() != 4:
            raise ValueError(f"x must be a batch of images [B, C, H, W], but is {list(x.shape)}.")
        if self.norm != Norm.Linf and x.shape[2] < 5:
            raise ValueError(
                f"L2 and L1 need images at least 5 pixels high, but x is {list(x.shape)}."
            )

    def share(self, query: int) -> float:
        """p at a query, counted from 0."""
        if self.rescaled:
            query = int(query / self.n_queries * 10000)
        return self.p_init / 2 ** sum(query > passed for passed in HALVED_AFTER)

    def side(self, query: int, x: Tensor) -> int:
        """A window's side in pixels; odd and at least 3 in L2 and L1 where the image is."""
        channels, height, width = x.shape[1:]
        # As the official code rounds.
        side = round(math.sqrt(self.share(query) * (channels * height * width) / channels))
        if self.norm == Norm.Linf:
            side = max(side, 1)
        else:
            side = max(side, 3)
            side += side % 2 == 0
        return min(side, height, width)
