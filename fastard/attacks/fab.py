"""FAB over a search: every sample walks to its boundary by itself, a network pass at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastard import ops
from fastard.attacks.search import Given, Passes, Search, compacted
from fastard.kinds import Norm
from fastard.shapes import per_sample

Confirm = Callable[[Tensor], Tensor]  # images to the module's own logits
CLEAR = 1e-4  # of the largest logit: a margin that no other order of summation turns
FAR = 1e10  # the norm of an adversarial not found yet
BLOCK = 10  # passes between two looks at who is done, where looking waits for the device


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
        no = torch.zeros_like(y, dtype=torch.bool)
        return cls(
            start.clone(), x.clone(), torch.full_like(y, FAR, dtype=x.dtype),
            torch.zeros_like(y, dtype=torch.int32), no, x, y, goals)  # fmt: skip

    def of(self, index: Tensor) -> Rows:
        """Those at `index`."""
        goals = None if self.goals is None else self.goals[index]
        return Rows(
            self.at[index], self.best[index], self.size[index], self.tests[index],
            self.trying[index], self.x[index], self.y[index], goals)  # fmt: skip

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
    size = per_sample(_size(t, norm), x)
    return (x + eps * t / size * 0.5).clamp(lo, hi)


def _seed(logits: Tensor, toward: Tensor, away: Tensor) -> Tensor:
    """The seed of logit `toward` less logit `away` in each row."""
    seed = torch.zeros_like(logits)
    seed.scatter_(1, toward[:, None], 1.0)
    return seed.scatter_(1, away[:, None], -1.0)


def _between(logits: Tensor, toward: Tensor, away: Tensor) -> Tensor:
    return (logits.gather(1, toward[:, None]) - logits.gather(1, away[:, None]))[:, 0]


def nearest(model: Passes, logits: Tensor, y: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """(gap [B], gradient) of the hyperplane that is nearest to the last forward's points.

    Equivalent to: the smallest over classes k != y of ``|z_k - z_y| / (dual_norm(grad(z_k - z_y)) +
    1e-12)``. C - 1 gradients of one forward, of which one is kept.
    """
    classes = logits.shape[1]
    dual = {Norm.Linf: Norm.L1, Norm.L2: Norm.L2, Norm.L1: Norm.Linf}[norm]
    least, gap, grad = None, torch.zeros_like(logits[:, 0]), torch.zeros(())
    for k in range(1, classes):
        other = (y + k) % classes
        one = model.vjp(_seed(logits, other, y), retain=k < classes - 1)
        between = _between(logits, other, y).to(one.dtype)
        distance = between.abs() / (_size(one, dual) + 1e-12)
        if least is None:
            least, gap, grad = distance, between, one
            continue
        closer = distance < least
        least = torch.where(closer, distance, least)
        gap = torch.where(closer, between, gap)
        grad = torch.where(per_sample(closer, one), one, grad)
    return gap, grad


def hyperplane(search: Search, rows: Rows, norm: Norm) -> Given:
    """At each point its `logits`, and `gap` [B] and `grad` of the hyperplane towards the goals, or
    towards the nearest class."""
    given = {"x": rows.at, "y": rows.y}
    if rows.goals is not None:
        given["goals"] = rows.goals

    def work(model: Passes, held: Given) -> Given:
        logits, y, goals = model.forward(held["x"]), held["y"], held.get("goals")
        if goals is None:
            gap, grad = nearest(model, logits, y, norm)
        else:
            gap, grad = _between(logits, goals, y), model.vjp(_seed(logits, goals, y))
        return {"logits": logits, "gap": gap, "grad": grad}

    return search.once(("hyperplane", norm), work, given, 1 if "goals" in given else None)


def _stepped(
    rows: Rows, walk: Walk, fooled: Tensor, gap: Tensor | None = None, grad: Tensor | None = None
) -> None:
    ops.fab_step_(
        rows.at, rows.best, rows.size, rows.tests, rows.trying, rows.x, grad, gap, fooled,
        walk.norm, walk.n_iter, walk.limit, walk.alpha_max, walk.eta, walk.beta, walk.clip_min,
        walk.clip_max)  # fmt: skip


def advance(search: Search, rows: Rows, walk: Walk) -> None:
    """One forward and its input gradients for all rows, and what each row makes of them.

    A test that the model still answers rightly is at once the place of the next gradient; after one
    that fools it the row goes back, and this pass's gradient is not used.
    """
    found = hyperplane(search, rows, walk.norm)
    fooled = found["logits"].argmax(1) != rows.y
    _stepped(rows, walk, fooled, found["gap"].to(rows.x.dtype), found["grad"].to(rows.x.dtype))


def look_ahead(search: Search, rows: Rows, walk: Walk, which: Tensor | None) -> None:
    """One forward alone for the rows at `which` (None: all): what fools the model goes back, so
    that `advance` takes its gradient where it is of use."""
    if which is None:
        fooled = search.logits(rows.at).argmax(1) != rows.y
    else:
        fooled = torch.zeros_like(rows.trying)
        fooled[which] = search.logits(rows.at[which]).argmax(1) != rows.y[which]
    _stepped(rows, walk, fooled)


@dataclass(frozen=True)
class Plan:
    """How the next passes go, decided where the host looks at the device.

    Attributes:
        passes: until the next look.
        ahead: whether to look ahead; `which`: at these rows only.
    """

    passes: int
    ahead: bool
    which: Tensor | None = None


def _plan(rows: Rows, exact: bool) -> Plan:
    """Whom to test before a gradient is taken: those that have found an adversarial once, most of
    whose later tests are ones, and, without goals, all: C - 1 gradients would be for nothing.
    """
    hopeful = torch.ones_like(rows.trying) if rows.goals is None else rows.size < FAR
    if not exact:
        return Plan(BLOCK, bool(hopeful.float().mean() > 0.5))
    which = (rows.trying & hopeful).nonzero()[:, 0]
    return Plan(1, len(which) > 0, which)


def _doubted(rows: Rows, real: int, walk: Walk, confirm: Confirm) -> tuple[Tensor, Tensor]:
    """Places of rows whose search is over with an adversarial that rounding may undo, and which of
    them are one now."""
    which = (rows.size[:real] <= walk.limit).nonzero()[:, 0]
    if len(which) == 0:
        return which, rows.trying[:0]
    logits, y = confirm(rows.best[which]), rows.y[which, None]
    other = logits.scatter(1, y, -torch.inf).amax(1)
    wrong = logits.argmax(1) != y[:, 0]
    margin = other - logits.gather(1, y)[:, 0]
    # A NaN is wrong beyond doubt.
    doubted = ~wrong | (margin <= CLEAR * logits.abs().amax(1))
    return which[doubted], wrong[doubted]


def fab(
    search: Search, x: Tensor, y: Tensor, walk: Walk,
    goals: Tensor | None = None, start: Tensor | None = None, confirm: Confirm | None = None,
    exact: bool | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(adversarials, their norms [B]): the smallest found, x and 1e10 where there was none.

    Args:
        search: the model; the host reads nothing of it between two looks at who is done.
        x: [B, ...] fp32 or fp64 in the box, images that the model takes for y.
        goals: [B], the class that each sample goes to; None: the nearest at each step.
        start: where to begin, x itself if None.
        confirm: must err clearly on an adversarial within the limit before its search ends. Of one
            on the boundary itself the next batch may say otherwise: the search goes on, and it
            counts only where no clear one is found.
        exact: whether the host looks after every pass, at exactly those who are left; None: where
            looking costs nothing.

    Source: Croce & Hein 2020 (arXiv 1907.02044), github.com/fra31/auto-attack, fab_base.py.
    """
    exact = not x.is_cuda if exact is None else exact
    rows = Rows.begun(x.contiguous(), y, goals, (x if start is None else start).contiguous())
    best, size = rows.best.clone(), rows.size.clone()
    spare, spare_size = rows.best.clone(), rows.size.clone()
    places, real = torch.arange(len(x), device=x.device), len(x)
    while True:
        left = rows.left(walk)
        left[real:] = False  # rows that only fill a bucket have no say
        if search.compacts:
            still, now = compacted(left, exact)
            if now < real:
                best[places[:real]], size[places[:real]] = rows.best[:real], rows.size[:real]
                places, rows, real = places[still], rows.of(still), now
        if real == 0 or not (search.compacts or left.any()):
            break
        plan = _plan(rows, exact)
        for _ in range(plan.passes):
            if plan.ahead:
                look_ahead(search, rows, walk, plan.which)
            advance(search, rows, walk)
        if confirm is not None:
            which, wrong = _doubted(rows, real, walk, confirm)
            kept = which[wrong]
            spare[places[kept]], spare_size[places[kept]] = rows.best[kept], rows.size[kept]
            rows.best[which], rows.size[which] = rows.x[which], FAR
    best[places[:real]], size[places[:real]] = rows.best[:real], rows.size[:real]
    taken = (size > walk.limit) & (spare_size < FAR)
    best = torch.where(per_sample(taken, x), spare, best)
    return best, torch.where(taken, spare_size, size)
