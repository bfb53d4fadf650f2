"""`FABAttack_PT`: FAB and FAB-T under the official class's name, constructor and attributes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastard import checks
from fastard.attacks.draws import CounterDraws, Draws, OfficialDraws, require_keys
from fastard.attacks.fab import FAR, Walk, fab, fab_start
from fastard.attacks.fab_official import official_fab, official_size, official_start
from fastard.autoattack.inputs import attacked_dtype
from fastard.autoattack.search import EagerSearch, EngineSearch, chosen
from fastard.kinds import Norm, parse_norm, unknown
from fastard.shapes import per_sample

Search = EagerSearch | EngineSearch

EPS = {"Linf": 0.3, "L2": 1.0, "L1": 5.0}  # where a restart begins when no eps is given


class FABAttack_PT:
    """Fast Adaptive Boundary attack: the smallest perturbation that crosses a boundary.

    Attributes may be changed between calls, as in the official class; `seed` and `target_class`
    are read at each. Two more say how it runs:

    Attributes:
        search: the model to search, an `EagerSearch` or `EngineSearch`; None makes one of `predict`
            at each call.
        compat: "official" draws as the official code does, one generator per call, and without a
            search of its own runs the module in eager autograd with the official operations: equal
            bits. None draws by sample ids, on the engine.

    Args:
        predict: an nn.Module or any callable from images in [0, 1] to logits [B, C].
        norm: "Linf", "L2" or "L1".
        n_restarts: runs (of each target); those after the first begin at random points.
        n_iter: tests in a run.
        eps: the norm up to which an adversarial counts; None: 0.3, 1, 5 for Linf, L2, L1.
        alpha_max: the most that a step may turn back to the original image.
        eta: how far a step goes beyond the boundary.
        beta: how much of the way remains after a step back from an adversarial.
        loss_fn: not used, as in the official class.
        verbose: print the robust accuracy after each run.
        seed: of the random starts; None: the time.
        targeted: run against one class at a time, the 2nd likeliest, the 3rd, ...
        device: where to run; None: x's.
        n_target_classes: how many, or as many as the model has.

    Croce & Hein 2020 (arXiv 1907.02044), github.com/fra31/auto-attack, fab_pt.py.
    """

    def __init__(
        self,
        predict: Callable[[Tensor], Tensor],
        norm: str = "Linf",
        n_restarts: int = 1,
        n_iter: int = 100,
        eps: float | None = None,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        loss_fn: Any = None,
        verbose: bool = False,
        seed: float | None = 0,
        targeted: bool = False,
        device: str | torch.device | None = None,
        n_target_classes: int = 9,
    ) -> None:
        self.predict = predict
        self.norm = parse_norm(norm).name
        self.n_restarts, self.n_iter = n_restarts, n_iter
        self.eps = eps if eps is not None else EPS[self.norm]
        self.alpha_max, self.eta, self.beta = alpha_max, eta, beta
        self.loss_fn = loss_fn
        self.targeted, self.verbose, self.seed = targeted, verbose, seed
        self.device = device
        self.n_target_classes = n_target_classes
        self.target_class: int | None = None
        self.search: Search | None = None
        self.compat: str | None = None

    def perturb(self, x: Tensor, y: Tensor, ids: Tensor | None = None) -> Tensor:
        """Adversarials of norm <= eps where they were found, x elsewhere; on `device`, float32
        (float64 for an x and a model of it).

        Args:
            x: [B, ...] in [0, 1].
            y: labels [B]; images that the model errs on are left as they are.
            ids: [B] int64, the samples that random starts are drawn for; None: positions.
        """
        x, y, ids = self._placed(x, y, ids)
        adv, begun = x.clone(), time.time()
        if len(x) == 0:
            return adv
        search, draws = self._chosen(), self._draws()
        with search.running(x):
            logits = search.logits(x)
            checks.labels_below(y, logits.shape[1], "y")
            robust = logits.max(1)[1] == y
            for target, restart in self._runs(logits.shape[1]):
                # Read once a run, never inside it.
                rows = robust.nonzero()[:, 0]
                if len(rows) == 0:
                    break
                images, labels = x[rows], y[rows]
                found = self._run(search, draws, images, labels, ids[rows], target, restart)
                broken = self._broken(search, images, labels, *found)
                adv[rows] = torch.where(per_sample(broken, x), found[0], adv[rows])
                robust[rows] = ~broken
                if self.verbose:
                    print(self._progress(target, restart, robust, time.time() - begun))
        return adv

    def attack_single_run(
        self, x: Tensor, y: Tensor | None = None, use_rand_start: bool = False,
        is_targeted: bool = False, ids: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The smallest adversarial that one run finds, of whatever norm; x where there was none.

        Args:
            y: labels, or None for the model's own.
            use_rand_start: begin at a random point.
            is_targeted: run against the class in place `target_class`, the likeliest being 1.
        """
        if is_targeted and self.target_class is None:
            raise ValueError("target_class must be set for a targeted run, but is None.")
        given = torch.zeros(len(x), dtype=torch.int64, device=x.device) if y is None else y
        x, labels, ids = self._placed(x, given, ids)
        search, target = self._chosen(), self.target_class if is_targeted else None
        with search.running(x):
            if y is None:
                labels = search.logits(x).max(1)[1]
            draws, restart = self._draws(), int(use_rand_start)
            return self._run(search, draws, x, labels, ids, target, restart, smallest=True)[0]

    def _placed(self, x: Tensor, y: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        device = torch.device(self.device) if self.device is not None else x.device
        x = checks.floating(x, "x").detach().to(device, attacked_dtype(self.predict, x))
        checks.in_box(x, 0.0, 1.0)
        y = checks.labels(y, len(x), y.device).to(device, torch.int64)
        if ids is None:
            ids = torch.arange(len(x), device=device)
        return x, y, ids.to(device)

    def _chosen(self) -> Search:
        if self.compat not in (None, "official"):
            raise unknown("compat", self.compat, ("official",))
        return chosen(self.search, self.predict, self.compat)

    def _draws(self) -> Draws:
        seed = time.time() if self.seed is None else self.seed
        if self.compat == "official":
            return OfficialDraws(seed)
        require_keys(self.n_restarts)
        return CounterDraws(int(seed), "fab-t" if self.targeted else "fab")

    def _runs(self, classes: int) -> Iterator[tuple[int | None, int]]:
        """The place of each run's target among the classes (None: untargeted), and its restart."""
        last = min(self.n_target_classes, classes - 1) + 1
        for target in range(2, last + 1) if self.targeted else (None,):
            self.target_class = target if target is not None else self.target_class
            yield from ((target, restart) for restart in range(self.n_restarts))

    def _run(
        self, search: Search, draws: Draws, x: Tensor, y: Tensor, ids: Tensor,
        target: int | None, restart: int, smallest: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(adversarials, norms) of one run; x and 1e10 where none was found or needed."""
        norm, limit = parse_norm(self.norm), -1.0 if smallest else float(self.eps)
        walk = Walk(norm, self.n_iter, limit, self.alpha_max, self.eta, self.beta)
        logits = search.logits(x)
        rows = (logits.max(1)[1] == y).nonzero()[:, 0]
        adv, size = x.clone(), torch.full((len(x),), FAR, dtype=x.dtype, device=x.device)
        if len(rows) == 0:
            return adv, size
        images, goals = x[rows], None
        if target is not None:
            goals = logits.sort(dim=-1)[1][:, -target][rows]
        start = self._start(search, draws, images, ids[rows], target, restart)
        if search.official:
            found = official_fab(search, images, y[rows], walk, goals, start)
        else:
            found = fab(search, images, y[rows], walk, goals, start, self._confirm)
        adv[rows], size[rows] = found
        return adv, size

    @torch.no_grad()
    def _confirm(self, x: Tensor) -> Tensor:
        """What the module itself says, whatever its program does."""
        return self.predict(x)

    def _start(
        self, search: Search, draws: Draws, x: Tensor, ids: Tensor,
        target: int | None, restart: int,
    ) -> Tensor | None:  # fmt: skip
        if restart == 0:
            return None
        norm, shape = parse_norm(self.norm), x.shape[1:]
        draw = draws.rand if norm == Norm.Linf else draws.randn
        noise = draw(ids, shape, restart=restart, target=target or 0)
        if search.official:
            return official_start(x, noise, self.eps, norm)
        return fab_start(x, noise, self.eps, norm, 0.0, 1.0)

    def _broken(self, search: Search, x: Tensor, y: Tensor, adv: Tensor, size: Tensor) -> Tensor:
        if not search.official:
            return size <= self.eps
        right = search.logits(adv).max(1)[1] == y
        return ~(right | (official_size(x - adv, parse_norm(self.norm)) > self.eps))

    def _progress(self, target: int | None, restart: int, robust: Tensor, seconds: float) -> str:
        aim = "" if target is None else f" - target_class {target}"
        return (
            f"restart {restart}{aim} - robust accuracy: {robust.float().mean():.2%} "
            f"at eps = {self.eps:.5f} - cum. time: {seconds:.1f} s"
        )


FABAttack = FABAttack_PT
