"""What PGD attacks share: settings, start, restarts, bookkeeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastard import checks, ops
from fastard.attacks import STARTS, Moves, Start, pgd, preserved_rng
from fastard.engine import Program
from fastard.kinds import Norm, parse_norm

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
        device = self.noise_device
        if device is None:
            device = self.generator.device if self.generator is not None else x.device
        return Start(self.start, self.clip_start, self.moves.norm, device, self.generator)

    def _attack(
        self,
        program: Program,
        x: Tensor,
        gradient: Callable[[Tensor, Tensor], Tensor],
        value: Callable[[Tensor, Tensor], Tensor],
        explain: Callable[[], str],
    ) -> Any:
        """Runs start and steps for every restart; `gradient` and `value` take (feed, x_adv)."""
        begun = time.perf_counter()
        start = self._start(x)
        with preserved_rng(start), program.running(x):
            best, info = self._restarts(program, x.detach(), start, gradient, value)
        if not self.return_info:
            return best
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        info.seconds, info.program = time.perf_counter() - begun, explain()
        return best, info

    def _restarts(
        self, program: Program, images: Tensor, start: Start,
        gradient: Callable[[Tensor, Tensor], Tensor], value: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, AttackInfo]:  # fmt: skip
        # Half-precision images are attacked in fp32 and rounded towards themselves at the end.
        x = images if images.dtype in (torch.float32, torch.float64) else images.float()
        x_adv, moves = torch.empty_like(x), self.moves
        if x.stride() != x_adv.stride():
            x = x_adv.clone().copy_(x)
        fed = program.feed(x)
        mean, std = fed.mean, fed.std
        feed = None if fed.is_x else torch.empty_like(x, dtype=fed.dtype)
        broken = (
            torch.zeros(len(x), dtype=torch.bool, device=x.device) if self.return_info else None
        )
        best, best_loss = x_adv, None
        for _ in range(self.n_restarts):
            start.write_(x_adv, x, moves.eps, moves.clip_min, moves.clip_max)
            if feed is not None:
                feed.copy_(ops.prepared(x_adv, mean, std, fed.dtype))
            pgd(lambda source: gradient(source, x_adv), x, x_adv, feed, moves, self.steps,
                mean=mean, std=std, broken=broken)  # fmt: skip
            if self.n_restarts == 1 and not self.return_info:
                break
            loss = value(x_adv if feed is None else feed, x_adv)
            if best_loss is None:
                best, best_loss = (x_adv.clone() if self.n_restarts > 1 else x_adv), loss
            else:
                higher = (loss > best_loss) | best_loss.isnan()
                best = torch.where(higher.view(-1, *[1] * (x.dim() - 1)), x_adv, best)
                best_loss = torch.where(higher, loss, best_loss)
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
