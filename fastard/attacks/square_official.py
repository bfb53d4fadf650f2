"""Square Attack as the official code computes it, query by query, reading as it reads."""

from __future__ import annotations

import torch
from torch import Tensor

from fastard import reference_square as plain
from fastard.attacks.l1_official import onto_ball_and_box
from fastard.attacks.square import L1_SHARE, Found, Logits, Reads, Told, start_images
from fastard.attacks.square_draws import OfficialSquares
from fastard.attacks.square_schedule import Squares
from fastard.kinds import Norm
from fastard.shapes import per_sample


def _mixed(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """new where better is 1, old where it is 0, as a sum: a NaN of either remains."""
    better = per_sample(better, new)
    return better * new + (1.0 - better) * old


def _projected(delta: Tensor, x: Tensor, eps: float | Tensor) -> Tensor:
    return x + delta + onto_ball_and_box(x.float(), delta.float(), eps)


def _proposal(
    best: Tensor, x: Tensor, setting: Squares, u: Tensor, side: int, heaps: dict[int, Tensor]
) -> Tensor:
    if setting.norm == Norm.Linf:
        return plain.linf_proposal(best, x, setting.eps, u, side)
    if side not in heaps:
        heaps[side] = plain.pyramid(side, setting.norm.name, x.device)
    delta = plain.displacement(best, x, setting.eps, u, heaps[side], setting.norm.name, True)
    if setting.norm == Norm.L2:
        return plain.on_sphere(delta, x, setting.eps)
    return _projected(delta, x, setting.eps * L1_SHARE)


class _Judge:
    """Margins and losses; by `exact` where another network's rounding might decide."""

    def __init__(self, images: Logits, exact: Logits | None, setting: Squares) -> None:
        self.images, self.exact, self.setting = images, exact, setting
        self.near = 0.0

    def _margins(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return plain.margins(logits, y, self.setting.ce, self.setting.targeted)

    def start(self, best: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.images(best)
        if self.exact is not None:
            wanted = self.exact(best)
            apart = (logits - wanted).abs().nan_to_num(0.0)
            # Larger than that error of a margin's two logits or a cross-entropy by far.
            self.near, logits = 10 * float(apart.max()) + 1e-6, wanted
        return self._margins(logits, y)

    def proposal(self, new: Tensor, y: Tensor, before: Found) -> tuple[Tensor, Tensor]:
        """Of the proposal; the loss in `before` is made exact where it is near."""
        now, value = self._margins(self.images(new), y)
        if self.exact is None:
            return now, value
        near = ((value - before.loss).abs() <= self.near) | (now.abs() <= self.near)
        rows = near.nonzero()[:, 0]
        if len(rows):
            both = self.exact(torch.cat((new[rows], before.best[rows])))
            margins, losses = self._margins(both, torch.cat((y[rows], y[rows])))
            now, value = now.clone(), value.clone()
            now[rows], value[rows] = margins[: len(rows)], losses[: len(rows)]
            before.loss[rows] = losses[len(rows) :]
        return now, value


def official_square(
    reads: Reads, x: Tensor, y: Tensor, ids: Tensor, setting: Squares, draws: OfficialSquares,
    told: Told | None = None, exact: Logits | None = None,
) -> Found:  # fmt: skip
    """`fastard.attacks.square.square`, operation for operation what the official code computes.

    Its images and its verdicts are the official ones to the bit, on the CPU, for equal draws. The
    box is [0, 1]. Host reads and boolean indexing are the official code's own.

    Args:
        exact: the module itself, where `reads` asks a program of it. In L2 and L1 every decision
            changes how many signs are drawn for all later queries, so that those near enough for
            the program's rounding to matter are the module's.
    """
    x_best = start_images(x, ids, setting, draws, _projected)
    judge = _Judge(reads.images, exact, setting)
    margin, loss = judge.start(x_best, y)
    # Of another tensor than the margin's, which the loss may be.
    found = Found(x_best, margin, loss.clone(), torch.ones_like(y))
    heaps: dict[int, Tensor] = {}
    if (margin < 0.0).all():
        return found
    for i in range(setting.n_queries):
        left = (margin > 0.0).nonzero()[:, 0]
        before = found.rows(left)
        u = draws.queries(ids[left], i, 1, x.shape[1], setting.norm.name)[:, 0]
        if len(left):
            side = setting.side(i, x)
            new = _proposal(before.best, x[left], setting.of(left), u, side, heaps)
            now, value = judge.proposal(new, y[left], before)
            lower = (value < before.loss).to(value.dtype)
            taken = torch.max(lower, (now <= 0.0).to(value.dtype))
            found.put(left, Found(
                _mixed(taken, new, before.best), _mixed(taken, now, before.margin),
                _mixed(lower, value, before.loss), before.queries + 1))  # fmt: skip
        if told is not None:
            told(i + 1, found)
        if bool((margin <= 0.0).all()):
            break
    return found
