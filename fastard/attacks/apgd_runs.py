"""Auto-PGD's runs, each over the samples that still withstand: restarts, targets, radii."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastard.attacks import apgd_official as official_code
from fastard.attacks.apgd import Found, Query, Walk, sphere_start
from fastard.attacks.apgd_losses import objective
from fastard.attacks.apgd_schedule import checkpoints, large_radii, sparse_checkpoints
from fastard.attacks.draws import Draws, GeneratorDraws
from fastard.attacks.l1_official import onto_ball_and_box
from fastard.attacks.pgd import Moves
from fastard.attacks.places import Place
from fastard.attacks.search import Search, compacted
from fastard.kinds import Norm
from fastard.reference_apgd import l1_moved
from fastard.shapes import per_sample

# Iterations between two readings of who is left. On the CPU reading costs nothing, but a batch of
# another size does: its primitives are made anew.
BLOCK_CPU, BLOCK = 5, 10
# The share of rows that must have left for the rest to go on without them.
WORTH = 1 / 16


def _pads(x: Tensor) -> bool:
    """Whether batches keep to a few sizes there: recorded graphs are reused."""
    return x.is_cuda


@dataclass(frozen=True)
class Setting:
    """What a run does, whoever the samples are.

    Attributes:
        steps: iterations a run, of all radii together.
        windows: `apgd_schedule.windows`, where they are not those of `steps`.
        large_eps: L1's schedule of larger radii instead of a random start in the ball.
    """

    norm: Norm
    steps: int = 100
    loss: str = "ce"
    rho: float = 0.75
    eot_iter: int = 1
    clip_min: float = 0.0
    clip_max: float = 1.0
    windows: tuple[int, int, int] | None = None
    large_eps: bool = False


@dataclass
class Rows:
    """The samples of a run: images, labels, numbers for the draws, radius, targets, starts."""

    x: Tensor
    y: Tensor
    ids: Tensor
    eps: float | Tensor
    goals: Tensor | None = None
    x_init: Tensor | None = None

    def of(self, index: Tensor) -> Rows:
        """The rows `index`, [n] int64."""

        def taken(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[index]

        eps = self.eps
        if isinstance(eps, Tensor) and eps.numel() > 1:
            eps = eps.to(self.x.device).reshape(-1)[index]
        return Rows(
            self.x[index], self.y[index], self.ids[index], eps, taken(self.goals),
            taken(self.x_init))  # fmt: skip


@dataclass
class Runs:
    """A search, where its random numbers come from, and how it goes.

    Attributes:
        device_draws: for the numbers that the official code draws on x's device.
        on_start: told the gradients at a run's start.
        on_step: told each iteration's number and its walk.
        iterations: those done so far.
        broken: bool, one for each of the last run's samples: a gradient was not finite; kept only
            where `look_for_broken` is set, and goes with searches whose rows stay.
    """

    search: Search
    draws: Draws
    setting: Setting
    device_draws: Draws | None = None
    on_start: Callable[[Tensor], None] | None = None
    on_step: Callable[[int, Walk], None] | None = None
    look_for_broken: bool = False
    iterations: int = 0
    broken: Tensor | None = field(default=None, init=False)

    def _moves(self, eps: float | Tensor) -> Moves:
        s = self.setting
        return Moves(eps, 0.0, s.norm, s.clip_min, s.clip_max)

    def _query(self, of: Rows) -> Query:
        search, setting = self.search, self.setting
        goal = objective(setting.loss, of.y, of.goals)

        def query(x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits, loss, grad = search.ascend(x_adv, goal)
            for _ in range(setting.eot_iter - 1):
                logits, loss, more = search.ascend(x_adv, goal)
                grad = grad + more
            if setting.eot_iter > 1:
                grad = grad / float(setting.eot_iter)
            if self.broken is not None:
                self.broken.logical_or_(~torch.isfinite(grad).flatten(1).all(1))
            top, guess = logits.max(1)
            correct = guess == of.y
            # A NaN counts as broken, where the official code may take it for the label.
            if not search.official:
                correct = correct & (top == top)
            return loss.to(x_adv.dtype), grad.to(x_adv.dtype), correct

        return query

    def _start(self, of: Rows, place: Place, eps: float | Tensor) -> tuple[Tensor, Tensor | None]:
        """The start, and in L1 how many coordinates it moves where they are not just counted."""
        moves, x, official = self._moves(eps), of.x, self.search.official
        draw = self.draws.rand if moves.norm == Norm.Linf else self.draws.randn
        noise = draw(of.ids, x.shape[1:], restart=place.restart, target=place.rank or 0)
        box = (moves.clip_min, moves.clip_max)
        if of.x_init is not None:
            return of.x_init.to(x.device, x.dtype).clamp(*box), None
        if official and moves.norm == Norm.L1:
            return official_code.l1_start(x, noise, eps, box).clamp(*box), None
        start = sphere_start(x, noise, moves)
        if moves.norm != Norm.L1:
            return start, None
        noise = noise.to(x.device, x.dtype)
        return start, l1_moved(x + noise, noise, start, x)

    def _projected(self, at: Tensor, x: Tensor, eps: float | Tensor) -> Tensor:
        """In L1's ball, rounded as the official code rounds it in every mode: the first share of
        coordinates follows how many differ from x, also those that rounding alone moves."""
        box = (self.setting.clip_min, self.setting.clip_max)
        return at + onto_ball_and_box(x, at - x, eps, box)

    def _walk(
        self, of: Rows, start: Tensor, eps: float | Tensor, steps: int, may_leave: bool,
        moved: Tensor | None = None, random: bool = True,
    ) -> Found:  # fmt: skip
        """`steps` iterations; what all rows have found, also those that left on the way."""
        setting, search = self.setting, self.search
        if setting.norm == Norm.L1:
            looks = sparse_checkpoints(steps)
        else:
            looks = checkpoints(steps, setting.windows)
        query = self._query(of)
        walk = Walk(query, of.x, start, self._moves(eps), looks, setting.rho, moved,
                    random, search.official)  # fmt: skip
        if self.on_start is not None:
            self.on_start(walk.grad)
        block = BLOCK if of.x.is_cuda else BLOCK_CPU
        # Where the walk's rows lie among all; None while none has left. Rows from `real` on pad.
        places, real, total = None, len(of.x), walk.found
        for i in range(steps):
            walk.advance(query, i)
            self.iterations += 1
            if self.on_step is not None:
                self.on_step(i, walk)
            if not may_leave or (i + 1) % block or i + 1 == steps:
                continue
            index, left = compacted(walk.robust[:real], exact=not _pads(of.x))
            if len(index) > (1 - WORTH) * len(walk.robust):
                continue
            if places is None:
                total, places = walk.found, torch.arange(real, device=of.x.device)
            else:
                _put(total, places, walk.found, real)
            if len(index) == 0:
                return total
            walk.keep(index)
            of, places, real = of.of(index), places[index[:left]], left
            query = self._query(of)
        if places is None:
            return walk.found
        _put(total, places, walk.found, real)
        return total

    def run(self, of: Rows, place: Place, may_leave: bool = True) -> Found:
        """One run over the given samples, from its own start."""
        setting, may_leave = self.setting, may_leave and self.search.compacts
        if self.look_for_broken:
            self.broken = torch.zeros_like(of.y, dtype=torch.bool)
        if not setting.large_eps:
            start, moved = self._start(of, place, of.eps)
            random = of.x_init is None
            return self._walk(of, start, of.eps, setting.steps, may_leave, moved, random)
        phases = large_radii(of.eps, setting.steps)
        if of.x_init is None:
            drawn = (self.device_draws or self.draws).randn(
                of.ids, of.x.shape[1:], restart=place.restart, target=place.rank or 0
            )
            at = self._projected(of.x + drawn.to(of.x.device, of.x.dtype), of.x, phases[0][0])
        else:
            at = of.x_init.to(of.x.device, of.x.dtype)
        for number, (eps, steps) in enumerate(phases):
            if isinstance(self.draws, GeneratorDraws):
                # The official code draws a start here and does not use it.
                self.draws.randn(of.ids, of.x.shape[1:])
            start = self._projected(at, of.x, eps).clamp(setting.clip_min, setting.clip_max)
            last = number == len(phases) - 1
            found = self._walk(of, start, eps, steps, may_leave and last, random=False)
            at = found.best
        return found


def _put(total: Found, places: Tensor, found: Found, real: int) -> None:
    for name in ("best", "loss", "fooled", "robust"):
        getattr(total, name)[places] = getattr(found, name)[:real]


@dataclass
class Outcome:
    """What all runs found.

    Attributes:
        adv: an image that was misclassified, or of highest loss; else x.
        loss: the highest of each sample, -inf where none was made.
        robust: bool [B].
        broken: bool [B]; a gradient was not finite.
    """

    adv: Tensor
    loss: Tensor
    robust: Tensor
    broken: Tensor


def all_runs(
    runs: Runs, of: Rows, logits: Tensor, places: Sequence[Place], best_loss: bool = False,
    report: Callable[[Place, Outcome], None] | None = None,
) -> Outcome:  # fmt: skip
    """Every run in turn: all samples with `best_loss`, else those that still withstand.

    Args:
        logits: [B, C] of the clean images; where their argmax is not y no run is needed.
        report: told of each run that was made.
    """
    robust = logits.argmax(1) == of.y
    order = logits.argsort(1) if places and places[0].rank is not None else None
    done = Outcome(
        of.x.clone(), torch.full_like(of.y, -torch.inf, dtype=of.x.dtype), robust,
        torch.zeros_like(robust))  # fmt: skip
    everyone = torch.arange(len(of.x), device=of.x.device)
    for place in places:
        # Read once a run, never inside it.
        left = everyone if best_loss else done.robust.nonzero()[:, 0]
        if len(left) == 0:
            break
        rows = of.of(left)
        if order is not None and place.rank is not None:
            here = order[left]
            if runs.search.official:
                # Asked anew, as the official code does: rounding depends on the batch.
                here = runs.search.logits(rows.x).sort(dim=1)[1]
            rows.goals = here[:, -place.rank]
        found = runs.run(rows, place, may_leave=not best_loss)
        higher = found.loss > done.loss[left]
        taken = per_sample(higher if best_loss else ~found.robust, of.x)
        candidates = found.best if best_loss else found.fooled
        done.adv[left] = torch.where(taken, candidates, done.adv[left])
        done.robust[left] = found.robust
        done.loss[left] = torch.where(higher, found.loss, done.loss[left])
        if runs.broken is not None:
            done.broken[left] |= runs.broken
        if report is not None:
            report(place, done)
    return done
