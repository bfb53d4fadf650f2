"""Square Attack over a network's logits: a black-box search whose decisions stay on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fastard import ops
from fastard import reference_square as plain
from fastard.attacks.search import compacted
from fastard.attacks.square_draws import SquareDraws
from fastard.attacks.square_schedule import Squares
from fastard.kinds import Norm
from fastard.ops.pgd_step import as_bound

# Queries between looks at how many samples are left: a look costs nothing on the CPU.
BLOCK = {"cpu": 10}
BLOCK_ELSEWHERE = 50
# The official code projects onto a ball a little smaller.
L1_SHARE = 1 - 1e-6


Logits = Callable[[Tensor], Tensor]


@dataclass
class Reads:
    """How a network is asked.

    Attributes:
        images: images to logits [B, C].
        prepared: (images - mean) / std to logits; images where mean is None. fp32 or fp64 as the
            images.
    """

    images: Logits
    prepared: Logits
    mean: Tensor | None = None
    std: Tensor | None = None


@dataclass
class Found:
    """A run's state, a row a sample.

    Attributes:
        best: the best images. margin: theirs, 0 or less where the attack succeeded. loss: the
            lowest. queries: forwards used, the start's included.
    """

    best: Tensor
    margin: Tensor
    loss: Tensor
    queries: Tensor

    def put(self, rows: Tensor, part: Found) -> None:
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(part, field.name)

    def rows(self, index: Tensor) -> Found:
        return Found(*(getattr(self, field.name)[index] for field in fields(self)))


Told = Callable[[int, Found], None]


def widened(logits: Tensor) -> Tensor:
    return (logits if logits.dtype == torch.float64 else logits.float()).contiguous()


def start_images(
    x: Tensor, ids: Tensor, setting: Squares, draws: SquareDraws,
    project: Callable[[Tensor, Tensor, float | Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Stripes of +-eps in Linf, tiles of pyramids in L2 and L1; `project` is L1's."""
    norm, eps = setting.norm.name, plain.column(setting.eps, x)
    lo, hi = setting.clip_min, setting.clip_max
    if setting.norm == Norm.Linf:
        u = draws.start(ids, x.shape[1:], norm, 0)
        return (x + eps * plain.signs(u).to(x.dtype)).clamp(lo, hi)
    places = plain.tiles(x)[1]
    delta = plain.start_tiles(draws.start(ids, x.shape[1:], norm, len(places)), x, norm)
    if setting.norm == Norm.L2:
        return plain.on_sphere(delta, x, setting.eps, lo, hi)
    return project(delta, x, setting.eps * L1_SHARE)


def _projector(setting: Squares) -> Callable[[Tensor, Tensor, float | Tensor], Tensor]:
    def project(delta: Tensor, x: Tensor, eps: float | Tensor) -> Tensor:
        """x plus delta projected onto ball and box, written into delta."""
        return ops.random_start_(
            delta, x, delta, eps, "uniform", "L1", clip_min=setting.clip_min,
            clip_max=setting.clip_max)  # fmt: skip

    return project


class _Batch:
    """The rows that the network sees, and what the kernel needs of them."""

    def __init__(self, x: Tensor, y: Tensor, ids: Tensor, found: Found, setting: Squares,
                 reads: Reads, heaps: dict[int, Tensor], copies: bool) -> None:  # fmt: skip
        self.x, self.y, self.ids, self.found, self.setting = x, y, ids, found, setting
        self.reads, self.copies, self.heaps = reads, copies, heaps
        self.real = len(x)  # rows after these are the first one again
        self.linf = setting.norm == Norm.Linf
        self.eps = as_bound(setting.eps, x)
        self.smaller = self.eps * L1_SHARE
        self.project = _projector(setting)
        self.trial = found.best.clone()
        if self.linf and reads.mean is not None and reads.std is not None:
            self.trial = ops.prepared(self.trial, reads.mean, reads.std, x.dtype)

    def rows(self, index: Tensor, real: int) -> _Batch:
        batch = _Batch(
            self.x[index], self.y[index], self.ids[index], self.found.rows(index),
            self.setting.of(index), self.reads, self.heaps, self.copies)  # fmt: skip
        batch.real = real
        return batch

    def _logits(self) -> Tensor:
        if self.setting.norm == Norm.L1:
            self.project(self.trial, self.x, self.smaller)
        ask = self.reads.prepared if self.linf else self.reads.images
        return widened(ask(self.trial.clone() if self.copies else self.trial))

    def run(self, draws: Tensor, offset: int, sides: list[int]) -> None:
        """A query a side; their draws begin at `offset`. Reads nothing back."""
        setting, found, reads = self.setting, self.found, self.reads
        mean, std = (reads.mean, reads.std) if self.linf else (None, None)
        logits: Tensor | None = None
        before = 0
        for k, side in enumerate([*sides, 0]):
            ops.square_step_(
                found.best, self.trial, self.x, self.eps, draws, self.y, found.margin, found.loss,
                found.queries, setting.norm, ce=setting.ce, targeted=setting.targeted,
                logits=logits, judged=offset + k - 1 if before else -1, judged_side=before,
                proposed=offset + k if side else -1, proposed_side=side,
                pyramid=self.heaps.get(side), clip_min=setting.clip_min,
                clip_max=setting.clip_max, mean=mean, std=std)  # fmt: skip
            if side:
                logits = self._logits()
            before = side


def _heaps(setting: Squares, x: Tensor, sides: list[int]) -> dict[int, Tensor]:
    if setting.norm == Norm.Linf:
        return {}
    host = torch.device("cpu")
    return {s: plain.pyramid(s, setting.norm.name, host).to(x.device) for s in set(sides)}


def square(
    reads: Reads, x: Tensor, y: Tensor, ids: Tensor, setting: Squares, draws: SquareDraws,
    compacts: bool = True, told: Told | None = None,
) -> Found:  # fmt: skip
    """One run: random windows of the best image are moved, and kept where the loss falls.

    Equivalent to (Linf)::

        best = clip(x + eps * signs)  # vertical stripes
        for i in range(n_queries):
            new = best.clone()
            new[:, :, r : r + s, c : c + s] += 2 * eps * sign_per_channel
            new = clip(new)
            best = where(loss(new) < lowest or margin(new) <= 0, new, best)

    for the samples whose margin is above 0. Nothing is read between blocks of queries, after which
    the solved rows leave, if `compacts`.

    Args:
        x: fp32 or fp64, contiguous [B, C, H, W].
        y: labels, or targets, [B] int64.
        ids: [B] int64, the samples.
        told: called after each block with the queries made and the state.

    Andriushchenko et al. 2020 (arXiv 1912.00049), github.com/fra31/auto-attack, square.py.
    """
    best = start_images(x, ids, setting, draws, _projector(setting))
    shown = best.clone()
    version = shown._version
    logits = widened(reads.images(shown))
    margin, loss = plain.margins(logits, y, setting.ce, setting.targeted)
    found = Found(best, margin, loss.clone(), torch.ones_like(y))
    sides = [setting.side(i, x) for i in range(setting.n_queries)]
    # A model that writes into its input is given a copy.
    batch = _Batch(x, y, ids, found, setting, reads, _heaps(setting, x, sides),
                   copies=shown._version != version)  # fmt: skip
    rows: Tensor | None = None  # of the batch; None: all
    # The signs of L2 and L1 that the official code draws are as many as samples left.
    exact = x.device.type == "cpu" or draws.at_once == 1
    each = min(BLOCK.get(x.device.type, BLOCK_ELSEWHERE), draws.at_once)
    numbers = torch.empty(0, 0, 0)
    done = 0
    while done < len(sides):
        index, count = compacted(batch.found.margin[: batch.real] > 0, exact)
        if count == 0:
            break
        if (compacts or draws.at_once == 1) and len(index) < len(batch.x):
            if rows is not None:
                found.put(rows, batch.found)
            rows = index if rows is None else rows[index]
            batch = batch.rows(index, count)
            if len(numbers) > 1:
                numbers = numbers[index]
        offset = done % draws.at_once
        if offset == 0:
            drawn = min(draws.at_once, len(sides) - done)
            numbers = draws.queries(batch.ids, done, drawn, x.shape[1], setting.norm.name)
            numbers = numbers.contiguous()
        now = sides[done : done - offset + min(offset + each, numbers.shape[1])]
        batch.run(numbers, offset, now)
        done += len(now)
        if told is not None:
            if rows is not None:
                found.put(rows, batch.found)
            told(done, found)
    if rows is not None:
        found.put(rows, batch.found)
    if done and not bool((found.margin > 0).any()):
        # Where the official code would have stopped drawing.
        used = int(found.queries.max()) - 1
        draws.ended(used - (done - 1) // draws.at_once * draws.at_once)
    return found
