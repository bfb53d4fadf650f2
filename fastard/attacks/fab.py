"""FAB over a search: every sample walks to its boundary by itself, a network pass at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fastard import ops
from fastard.attacks.search import Search, compacted
from fastard.kinds import Norm

FAR = 1e10  # the norm of an adversarial not found yet
# Passes between two looks at who is done: where looking waits for the device, few looks.
BLOCKS = {"cpu": 1, "cuda": 10}


@dataclass(frozen=True)
class Walk:
    """How a search goes: the constants of `fab_step_`; limit < 0 looks for the smallest norm."""

    norm: Norm
    n_iter: int = 100
    limit: float = -1.0
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    clip_min: float = 0.0
    clip_max: float = 1.0


@dataclass
class Rows:
    """Samples on their way; each field is [B, ...], as `fab_step_` has them.

    `goals`, [B], are the classes aimed at, or None.
    """

    at: Tensor
    best: Tensor
    size: Tensor
    tests: Tensor
    trying: Tensor
    x: Tensor
    y: Tensor
    goals: Tensor | None

    @classmethod
    def begun(cls, x: Tensor, y: Tensor, goals: Tensor | None, start: Tensor) -> Rows:
        return cls(
            start.clone(), x.clone(), torch.full_like(y, FAR, dtype=x.dtype),
            torch.zeros_like(y, dtype=torch.int32), torch.zeros_like(y, dtype=torch.bool),
            x, y, goals)  # fmt: skip

    def of(self, index: Tensor) -> Rows:
        """Those at `index`."""
        given = (getattr(self, field.name) for field in fields(self))
        return Rows(*(t if t is None else t[index] for t in given))

    def left(self, walk: Walk) -> Tensor:
        """Bool [B]: whose search is not over."""
        return (self.tests < walk.n_iter) & ~(self.size <= walk.limit)


def _size(d: Tensor, norm: Norm) -> Tensor:
    """[B], each sample's norm."""
    order = {Norm.Linf: torch.inf, Norm.L2: 2, Norm.L1: 1}[norm]
    return torch.linalg.vector_norm(d.flatten(1), order, dim=1)


def fab_start(x: Tensor, noise: Tensor, eps: float, norm: Norm, lo: float, hi: float) -> Tensor:
    """x plus noise of norm eps / 2, clipped to the box: where a restart begins.

    Equivalent to (Linf): ``t = 2 * noise - 1; (x + eps * t / t.abs().amax((1, 2, 3), True) *
    0.5).clamp(0, 1)``; in L2 and L1 Gaussian noise over its norm.
    """
    t = noise.to(x.device, x.dtype)
    t = 2 * t - 1 if norm == Norm.Linf else t
    size = _size(t, norm).view(-1, *[1] * (x.dim() - 1))
    return (x + eps * t / size * 0.5).clamp(lo, hi)


def _seed(logits: Tensor, toward: Tensor, away: Tensor) -> Tensor:
    """The seed of logit `toward` less logit `away` in each row."""
    seed = torch.zeros_like(logits)
    seed.scatter_(1, toward[:, None], 1.0)
    return seed.scatter_(1, away[:, None], -1.0)


def _between(logits: Tensor, toward: Tensor, away: Tensor) -> Tensor:
    return (logits.gather(1, toward[:, None]) - logits.gather(1, away[:, None]))[:, 0]


def nearest(search: Search, logits: Tensor, y: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """(gap [B], gradient) of the hyperplane that is nearest to the last forward's points.

    Equivalent to: the smallest over classes k != y of ``|z_k - z_y| / (dual_norm(grad(z_k - z_y)) +
    1e-12)``. C - 1 gradients of one forward, of which one is kept.
    """
    classes = logits.shape[1]
    dual = {Norm.Linf: Norm.L1, Norm.L2: Norm.L2, Norm.L1: Norm.Linf}[norm]
    least, gap, grad = None, torch.zeros_like(logits[:, 0]), torch.zeros(())
    for k in range(1, classes):
        other = (y + k) % classes
        one = search.vjp(_seed(logits, other, y), retain=k < classes - 1)
        between = _between(logits, other, y).to(one.dtype)
        distance = between.abs() / (_size(one, dual) + 1e-12)
        if least is None:
            least, gap, grad = distance, between, one
            continue
        closer = distance < least
        least = torch.where(closer, distance, least)
        gap = torch.where(closer, between, gap)
        grad = torch.where(closer.view(-1, *[1] * (one.dim() - 1)), one, grad)
    return gap, grad


def hyperplane(search: Search, rows: Rows, logits: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """(gap [B], gradient) towards the goals, or towards the nearest class."""
    if rows.goals is None:
        return nearest(search, logits, rows.y, norm)
    grad = search.vjp(_seed(logits, rows.goals, rows.y))
    return _between(logits, rows.goals, rows.y), grad


def iterate(search: Search, rows: Rows, walk: Walk) -> None:
    """One forward and its input gradients for all rows, and what each row makes of them.

    A test that the model still answers rightly is at once the place of the next gradient; after one
    that fools it the row goes back, and this pass's gradient is not used.
    """
    logits = search.forward(rows.at)
    gap, grad = hyperplane(search, rows, logits, walk.norm)
    ops.fab_step_(
        rows.at, rows.best, rows.size, rows.tests, rows.trying, rows.x, grad.to(rows.x.dtype),
        gap.to(rows.x.dtype), logits.argmax(1) != rows.y, walk.norm, walk.n_iter, walk.limit,
        walk.alpha_max, walk.eta, walk.beta, walk.clip_min, walk.clip_max)  # fmt: skip


def _blocks(rows: Rows, walk: Walk) -> Iterator[int]:
    """Passes until the next look; a row needs at most two a test, and one more."""
    left, block = 2 * walk.n_iter + 1, BLOCKS.get(rows.x.device.type, 1)
    while left > 0:
        yield min(block, left)
        left -= block


def fab(
    search: Search, x: Tensor, y: Tensor, walk: Walk,
    goals: Tensor | None = None, start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(adversarials, their norms [B]): the smallest found, x and 1e10 where there was none.

    Args:
        search: the model; the host reads nothing of it between two looks at who is done.
        x: [B, ...] fp32 or fp64 in the box, images that the model takes for y.
        goals: [B], the class that each sample goes to; None: the nearest at each step.
        start: where to begin, x itself if None.

    Source: Croce & Hein 2020 (arXiv 1907.02044), github.com/fra31/auto-attack, fab_base.py.
    """
    rows = Rows.begun(x.contiguous(), y, goals, (x if start is None else start).contiguous())
    best, size = rows.best.clone(), rows.size.clone()
    places = torch.arange(len(x), device=x.device)
    for passes in _blocks(rows, walk):
        left = rows.left(walk)
        still = compacted(left, exact=not x.is_cuda) if search.compacts else None
        if still is not None and len(still) < len(places):
            best[places], size[places] = rows.best, rows.size
            places, rows = places[still], rows.of(still)
        if len(places) == 0 or not (still is not None or left.any()):
            break
        for _ in range(passes):
            iterate(search, rows, walk)
    best[places], size[places] = rows.best, rows.size
    return best, size
