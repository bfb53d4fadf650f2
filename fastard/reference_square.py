"""Square Attack's proposals and judgement in plain PyTorch, in the official code's operations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastard.shapes import per_sample

# Numbers of a query before the channels' signs: a window's offsets; in L2 and L1 those of two
# windows and whether the pyramid is transposed.
PLACES = {"Linf": 2, "L2": 5, "L1": 5}
Bound = float | Tensor


def column(t: Bound, x: Tensor) -> Bound:
    """A value per sample as it multiplies images."""
    return per_sample(t, x) if isinstance(t, Tensor) else t


def signs(u: Tensor) -> Tensor:
    """-1 or 1 of uniform numbers, 0 at exactly 0.5."""
    return torch.sign(2 * u - 1)


def _rings(height: int, width: int, power: int, device: torch.device) -> Tensor:
    """1/k**power summed over the squares, of sides 2k - 1 around the middle, that hold a pixel."""
    heap = torch.zeros([height, width], device=device)
    middle = (height // 2, width // 2)
    rows, columns = (
        (torch.arange(n, device=device) - at).abs()
        for n, at in zip((height, width), middle, strict=True)
    )
    ring = torch.maximum(rows[:, None], columns[None])
    for k in range(max(middle) + 1):
        heap += (ring <= k) * (1.0 / torch.tensor([k + 1.0], device=device) ** power)
    return heap / _size(heap, power == 2)


def _size(t: Tensor, l2: bool) -> Tensor:
    return (t**2).sum().sqrt() if l2 else t.abs().sum()


def pyramid(side: int, norm: str, device: torch.device) -> Tensor:
    """[side, side] fp32 of norm 1: a heap in the upper half, one turned over in the lower."""
    power = 2 if norm == "L2" else 4
    half = side // 2
    both = torch.zeros([side, side], device=device)
    both[:half] = _rings(half, side, power, device)
    both[half:] = -1.0 * _rings(side - half, side, power, device)
    return both / _size(both, norm == "L2")


def margins(logits: Tensor, y: Tensor, ce: bool, targeted: bool) -> tuple[Tensor, Tensor]:
    """What is 0 or less once the attack succeeded, and the loss that it lowers, each [B]."""
    own = logits.gather(1, y[:, None])[:, 0]
    other = logits.scatter(1, y[:, None], -float("inf")).max(dim=-1)[0]
    if targeted:
        return other - own, F.cross_entropy(logits, y, reduction="none")
    margin = own - other
    return margin, -1.0 * F.cross_entropy(logits, y, reduction="none") if ce else margin


def _offsets(u: Tensor, side: int, size: int) -> Tensor:
    """Where windows of `side` in `size` begin; the last place is never drawn."""
    return ((size - side) * u).long()


def _window(u: Tensor, side: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The rows [n or 1, 1, side, 1] and columns of each sample's window, from two numbers."""
    steps = torch.arange(side, device=x.device)
    rows = _offsets(u[:, 0], side, x.shape[2])[:, None] + steps
    columns = _offsets(u[:, 1], side, x.shape[3])[:, None] + steps
    return rows[:, None, :, None], columns[:, None, None, :]


def _mask(u: Tensor, side: int, x: Tensor) -> Tensor:
    """1 in each sample's window, [n or 1, 1, H, W]."""
    inside = []
    for k, size in enumerate(x.shape[2:]):
        first, at = _offsets(u[:, k], side, size)[:, None], torch.arange(size, device=x.device)
        inside.append((at >= first) & (at < first + side))
    return (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(x.dtype)


def linf_proposal(
    best: Tensor, x: Tensor, eps: Bound, u: Tensor, side: int, lo: float = 0.0, hi: float = 1.0
) -> Tensor:
    """best with one window moved by 2 eps, a sign a channel, into ball and box.

    Args:
        u: [n or 1, 2 + channels] in [0, 1).
    """
    eps = column(eps, x)
    delta = _mask(u, side, x) * (2.0 * eps * signs(u[:, 2:]).to(x.dtype)[:, :, None, None])
    return torch.min(torch.max(best + delta, x - eps), x + eps).clamp(lo, hi)


def _per_channel(t: Tensor, l2: bool) -> Tensor:
    if l2:
        return (t**2).sum(dim=(-2, -1), keepdim=True).sqrt()
    return t.abs().sum(dim=(-2, -1), keepdim=True)


def _per_image(t: Tensor, l2: bool) -> Tensor:
    flat = t.flatten(1)
    size = (flat**2).sum(-1).sqrt() if l2 else flat.abs().sum(dim=-1)
    return size.view(-1, 1, 1, 1)


def _windows(u: Tensor, side: int, x: Tensor, together: bool) -> tuple[list[Any], Tensor]:
    """How to index a first and a second window, and 1 where either lies, [n or 1, 1, H, W]."""
    if together:
        either = torch.zeros(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
        places = []
        for k in (0, 2):
            row, at = (int(_offsets(u[:1, k + d], side, x.shape[2 + d])) for d in (0, 1))
            where = (..., slice(row, row + side), slice(at, at + side))
            either[where] = 1.0
            places.append(where)
        return places, either
    samples = torch.arange(len(x), device=x.device)[:, None, None, None]
    planes = torch.arange(x.shape[1], device=x.device)[:, None, None]
    found = [(samples, planes, *_window(u[:, k : k + 2], side, x)) for k in (0, 2)]
    return found, torch.max(_mask(u, side, x), _mask(u[:, 2:], side, x))


def displacement(
    best: Tensor, x: Tensor, eps: Bound, u: Tensor, heap: Tensor, norm: str, together: bool = False
) -> Tensor:
    """best - x with the mass of a second window moved into a first; L2 and L1, not yet projected.

    Args:
        u: [n or 1, 5 + channels] in [0, 1).
        heap: `pyramid`, [side, side].
        together: all samples have the first one's windows, whose places are read: faster.
    """
    l2, side, channels = norm == "L2", len(heap), x.shape[1]
    eps = column(eps, x)
    delta = best - x
    (first, second), either = _windows(u, side, x, together)
    before = delta[first].contiguous()
    image = _per_image(delta, l2)
    windows = _per_channel(delta * either, l2)
    turned = torch.where((u[:, 4] > 0.5)[:, None, None, None], heap.t(), heap)
    fresh = torch.ones_like(before) * (turned * signs(u[:, 5:])[:, :, None, None])
    fresh += before / (1e-12 + _per_channel(before, l2))
    unit = fresh / (1e-12 + _per_channel(fresh, l2))
    zero = torch.zeros_like(image)
    if l2:
        left = torch.max((eps * torch.ones_like(image)) ** 2 - image**2, zero)
        fresh = unit * (left / channels + windows**2).sqrt()
    else:
        left = torch.max(eps * torch.ones_like(image) - image, zero)
        fresh = unit * (left / channels + windows) * channels
    delta[second] = 0.0
    delta[first] = fresh
    return delta


def on_sphere(delta: Tensor, x: Tensor, eps: Bound, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    """x plus delta scaled to an L2 norm of eps, in the box."""
    return (x + delta / (_per_image(delta, True) + 1e-12) * column(eps, x)).clamp(lo, hi)


def start_tiles(u: Tensor, x: Tensor, norm: str) -> Tensor:
    """L2 and L1: displacements of a pyramid a tile, of a fifth of the height, a sign a channel.

    Args:
        u: [n, tiles, 1 + channels] in [0, 1), by rows of `tiles(x)`: whether the pyramid is
            transposed (the first sample's number counts for all where u is shared), the signs.
    """
    delta = torch.zeros_like(x)
    tile, places = tiles(x)
    heap = pyramid(tile, norm, x.device)
    for k, (row, at) in enumerate(places):
        turned = torch.where((u[:, k, 0] > 0.5)[:, None, None, None], heap.t(), heap)
        put = turned * signs(u[:, k, 1:])[:, :, None, None]
        inside = delta[:, :, row : row + tile, at : at + tile]
        # What lies beyond the image is cut.
        inside += put[:, :, : inside.shape[2], : inside.shape[3]]
    return delta


def tiles(x: Tensor) -> tuple[int, list[tuple[int, int]]]:
    """The start's tile size, and where tiles begin, in the order in which they are drawn."""
    height, width = x.shape[2:]
    tile = height // 5
    first = (height - tile * 5) // 2
    rows, columns = ([first + k * tile for k in range(n // tile)] for n in (height, width))
    return tile, [(row, at) for row in rows for at in columns]


def step(
    x_best: Tensor, trial: Tensor, x: Tensor, eps: Bound, draws: Tensor, labels: Tensor,
    margin: Tensor, loss: Tensor, queries: Tensor, norm: str, ce: bool, targeted: bool,
    judged: int, judged_side: int, proposed: int, proposed_side: int, lo: float, hi: float,
    logits: Tensor | None, heap: Tensor | None, mean: Tensor | None, std: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What `ops.square_step_` leaves in x_best, trial, margin, loss and queries."""
    open_ = margin > 0
    if logits is not None:
        now, value = margins(logits, labels, ce, targeted)
        lower = open_ & (value < loss)
        taken = lower | (open_ & (now <= 0))
        judged_images = trial
        if norm == "Linf":
            judged_images = linf_proposal(x_best, x, eps, draws[:, judged], judged_side, lo, hi)
        x_best = torch.where(taken[:, None, None, None], judged_images, x_best)
        loss, margin = torch.where(lower, value, loss), torch.where(taken, now, margin)
        queries = queries + open_
        open_ = margin > 0
    if norm == "Linf":
        trial = x_best
        if proposed >= 0:
            moved = linf_proposal(x_best, x, eps, draws[:, proposed], proposed_side, lo, hi)
            trial = torch.where(open_[:, None, None, None], moved, x_best)
        if mean is not None and std is not None:
            trial = (trial - mean.to(x.dtype).view(1, -1, 1, 1)) / std.to(x.dtype).view(1, -1, 1, 1)
    elif proposed >= 0:
        assert heap is not None
        moved = displacement(x_best, x, eps, draws[:, proposed], heap, norm)
        if norm == "L2":
            moved = on_sphere(moved, x, eps, lo, hi)
        trial = torch.where(
            open_[:, None, None, None], moved, trial if norm == "L2" else x_best - x)  # fmt: skip
    return x_best, trial, margin, loss, queries
