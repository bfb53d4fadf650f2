"""Random starts, drawn as the published loops draw them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fastard import ops, rows
from fastard.kinds import Norm

STARTS = ("gaussian", "uniform")


@dataclass(frozen=True)
class Start:
    """How an attack starts.

    `kind` None starts at x. Noise is contiguous NCHW fp32: ``torch.randn(x.shape)`` for the
    Gaussian and for every L2 and L1 start, ``torch.rand(x.shape)`` for the uniform Linf start, one
    more ``torch.rand(len(x))`` for the L2 radius; drawn on `device` from `generator`, or torch's
    global one; within `rows.part_of_batch`, for the whole batch.
    """

    kind: str | None
    clip: bool
    norm: Norm
    device: torch.device
    generator: torch.Generator | None = None
    sigma: float = 0.001

    def _draw(self, draw: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        return rows.drawn(
            draw, shape, device=self.device, generator=self.generator, dtype=torch.float32
        )

    def write_(
        self, x_adv: Tensor, x: Tensor, eps: float | Tensor, clip_min: float, clip_max: float
    ) -> None:
        """Draws a start into x_adv."""
        self.place_(x_adv, x, *self.draw(x), eps, clip_min, clip_max)

    def draw(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The noise of x's shape and, for a uniform L2 start, the radius [B], on `device`."""
        if self.kind is None:
            return None, None
        draw = torch.rand if self.kind == "uniform" and self.norm == Norm.Linf else torch.randn
        noise = self._draw(draw, x.shape)
        radius = None
        if self.kind == "uniform" and self.norm == Norm.L2:
            radius = self._draw(torch.rand, (len(x),))
        return noise, radius

    def place_(
        self, x_adv: Tensor, x: Tensor, noise: Tensor | None, radius: Tensor | None,
        eps: float | Tensor, clip_min: float, clip_max: float,
    ) -> None:  # fmt: skip
        """Writes the start that `draw` drew into x_adv."""
        if self.kind is None or noise is None:
            x_adv.copy_(x)
            return
        radius = None if radius is None else radius.to(x.device)
        ops.random_start_(
            x_adv, x, noise.to(x.device), eps, self.kind, self.norm, radius=radius,
            sigma=self.sigma, clip=self.clip, clip_min=clip_min, clip_max=clip_max)  # fmt: skip


@contextmanager
def preserved_rng(start: Start) -> Iterator[None]:
    """Takes back a start's draws when the block raises."""
    if start.kind is None:
        yield
        return
    generator, cuda = start.generator, start.device.type == "cuda"
    if generator is not None:
        state = generator.get_state()
    else:
        state = torch.cuda.get_rng_state(start.device) if cuda else torch.get_rng_state()
    try:
        yield
    except BaseException:
        if generator is not None:
            generator.set_state(state)
        elif cuda:
            torch.cuda.set_rng_state(state, start.device)
        else:
            torch.set_rng_state(state)
        raise
