"""What PGD attacks share: settings, start, restarts, bookkeeping."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastard import checks, ops
from fastard.api.images import noise_place, searched
from fastard.api.run import Goal, Run
from fastard.attacks import STARTS, Moves, Start, preserved_rng
from fastard.engine import capture
from fastard.kinds import Norm, parse_norm
from fastard.ops.pgd_step import as_bound
from fastard.shapes import per_sample

Bound = float | Tensor


@dataclass
class AttackInfo:
    """What an attack did.

    Attributes:
        loss: [B], the attack's own loss at the images returned, per sample (of the best restart).
        iterations: gradient steps taken, all restarts together.
        program: what ran and why, as `Program.explain` says it.
        seconds: wall time of the call, the device synchronised at its end.
        broken: bool [B]; the sample met a gradient that was not finite.
    """

    loss: Tensor
    iterations: int
    program: str
    seconds: float
    broken: Tensor


class Attack:
    """Settings, start, restarts and bookkeeping; subclasses give the gradient."""

    def __init__(
        self,
        norm: str | float | Norm = "Linf",
        eps: Bound = 8 / 255,
        alpha: Bound = 2 / 255,
        steps: int = 10,
        *,
        random_start: bool | str = True,
        published_start: str | None = "uniform",
        clip_start: bool = True,
        clip_min: float = 0.0,
        clip_max: float = 1.0,
        l1_sparsity: float = 0.2,
        n_restarts: int = 1,
        noise_device: str | torch.device | None = None,
        generator: torch.Generator | None = None,
        return_info: bool = False,
    ) -> None:
        if not (isinstance(random_start, bool) or random_start in STARTS):
            raise ValueError(
                "random_start must be True, False, 'gaussian' or 'uniform', but is "
                f"{random_start!r}."
            )
        steps = checks.steps(steps)
        checks.box(clip_min, clip_max)
        n_restarts = checks.steps(n_restarts, "n_restarts")
        checks.generator(generator)
        self.start = published_start if random_start is True else (random_start or None)
        if n_restarts > 1 and self.start is None:
            raise ValueError("n_restarts above 1 needs a random start, but random_start is False.")
        for value, name in ((eps, "eps"), (alpha, "alpha")):
            checks.radius(value, None, name)
        self.moves = Moves(eps, alpha, parse_norm(norm), clip_min, clip_max, l1_sparsity)
        whole = clip_max - clip_min
        if self.moves.norm == Norm.Linf and isinstance(eps, (int, float)) and eps > whole:
            warnings.warn(
                f"eps is {eps:g} but images span {whole:g}: a radius is in the images' own units, "
                "such as 8/255 for images in [0, 1].",
                stacklevel=3,
            )
        self.steps, self.clip_start, self.n_restarts = steps, clip_start, n_restarts
        self.noise_device, self.generator = checks.device(noise_device, "noise_device"), generator
        self.return_info = return_info

    def _check_images(self, x: Tensor, values: bool) -> None:
        checks.floating(x, "x")
        if x.dim() < 2:
            raise ValueError(f"x must be a batch of images [B, C, H, W], but is {list(x.shape)}.")
        for value, name in ((self.moves.eps, "eps"), (self.moves.alpha, "alpha")):
            checks.radius(value, x, name)
            if values:
                checks.radius_values(value, name)
        if values:
            checks.in_box(x, self.moves.clip_min, self.moves.clip_max)

    def _start(self, x: Tensor) -> Start:
        device = noise_place(self.noise_device, self.generator, x)
        return Start(self.start, self.clip_start, self.moves.norm, device, self.generator)

    def _attack(self, goal: Goal, x: Tensor, values: bool, explain: Callable[[], str]) -> Any:
        """Runs start and steps for every restart towards `goal`."""
        begun = time.perf_counter()
        start = self._start(x)
        with preserved_rng(start), ExitStack() as around:
            for program in reversed(goal.programs):
                around.enter_context(program.running(x, renewed=False))
            best, info = self._restarts(goal, x.detach(), start, values)
        if not self.return_info:
            return best
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        info.seconds, info.program = time.perf_counter() - begun, explain()
        return best, info

    def _restarts(
        self, goal: Goal, images: Tensor, start: Start, values: bool
    ) -> tuple[Tensor, AttackInfo]:
        # Half-precision images are attacked in fp32 and rounded towards themselves at the end.
        x = searched(images)
        dense = torch.empty_like(x)
        if x.stride() != dense.stride():
            x = dense.copy_(x)
        del dense
        judged = self.n_restarts > 1 or self.return_info
        run = Run(goal, self.moves, start, self.steps, judged, self.return_info)
        # Looking at values would make the host wait in every replay.
        checked = "the values of this call's inputs are checked" if values and x.is_cuda else None
        bounds = {
            name: as_bound(value, x) if isinstance(value, Tensor) else float(value)
            for name, value in (("eps", self.moves.eps), ("alpha", self.moves.alpha))
        }
        best: Tensor | None = None
        best_loss = broken = None
        for _ in range(self.n_restarts):
            noise, radius = start.draw(x)
            inputs = {"x": x, **bounds, **goal.given, "noise": noise, "radius": radius}
            del noise, radius
            found = capture.run(goal.programs, run.key, run, inputs, goal.refusal, checked)
            x_adv, loss = found["x_adv"], found.get("loss")
            if self.return_info:
                broken = found["broken"] if broken is None else broken | found["broken"]
            if best is None or best_loss is None or loss is None:
                best, best_loss = x_adv, loss
            else:
                higher = (loss > best_loss) | best_loss.isnan()
                best = torch.where(per_sample(higher, x), x_adv, best)
                best_loss = torch.where(higher, loss, best_loss)
        assert best is not None
        if best.dtype != images.dtype:
            best = ops.round_towards(best, images)
        iterations = self.steps * self.n_restarts
        return best, AttackInfo(best_loss, iterations, "", 0.0, broken)  # type: ignore[arg-type]

    def _empty(self, x: Tensor) -> Any:
        x_adv = x.detach().clone()
        if not self.return_info:
            return x_adv
        nothing = x.new_zeros(0, dtype=torch.float32)
        return x_adv, AttackInfo(nothing, 0, "empty batch", 0.0, nothing.bool())
