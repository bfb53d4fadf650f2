"""`fab`: the Fast Adaptive Boundary attack on one model, within eps or of the smallest norm."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastard import checks
from fastard.api.attack import AttackInfo
from fastard.api.images import checked, noise_place, returned, searched
from fastard.api.search import EngineSearch
from fastard.attacks import Start, preserved_rng
from fastard.attacks.fab import FAR, Walk, fab_start
from fastard.attacks.fab import fab as search_boundary
from fastard.attacks.places import places
from fastard.engine import Inference, Program
from fastard.engine.unwrap import Model
from fastard.kinds import Norm, parse_norm
from fastard.shapes import per_sample

# Where a restart begins when no eps is given: the official class's.
EPS = {Norm.Linf: 0.3, Norm.L2: 1.0, Norm.L1: 5.0}


@dataclass
class FABInfo(AttackInfo):
    """What `fab` did: `AttackInfo`, with the norms and the model's verdict.

    `loss` is minus the norm, -inf where no adversarial was found; `iterations` are tests, all runs
    together; `broken` is all false: a gradient that is not finite moves nothing.

    Attributes:
        norm: [B]; of the smallest adversarial, 0 where the model errs on x, inf where none was
            found.
        robust: bool [B]; the module itself, not its program, still says y for the image returned.
    """

    norm: Tensor
    robust: Tensor


def fab(
    model: Model,
    x: Tensor,
    y: Tensor,
    norm: str | float | Norm = "Linf",
    eps: float | None = None,
    steps: int = 100,
    *,
    targeted: bool = False,
    n_restarts: int = 1,
    n_target_classes: int = 9,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    clip_min: float = 0.0,
    clip_max: float = 1.0,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    precision: str | None = "fp32",
    engine: bool = True,
    noise_device: str | torch.device | None = None,
    generator: torch.Generator | None = None,
    return_info: bool = False,
) -> Any:
    """Fast Adaptive Boundary attack: steps onto the linearised boundary, back towards x.

    Equivalent to: ``FABAttack_PT(model, norm, n_restarts, steps, eps, alpha_max, eta, beta,
    targeted=targeted, n_target_classes=n_target_classes).perturb(x, y)`` of the official package,
    up to which of several adversarials within eps is returned; without eps, to the smallest one of
    the same runs.

    Images that the model errs on are left as they are; with eps, a sample's search ends with its
    first adversarial within it. The search is in fp32 whatever autocast says; the model is attacked
    in eval mode and left as it was.

    Args:
        x: [B, C, H, W] in [clip_min, clip_max].
        y: labels [B].
        norm: "Linf", "L2", "L1" (aliases accepted), which is made small.
        eps: the largest norm in pixels that counts; None returns the smallest adversarial of all
            runs, of whatever norm.
        steps: tests a sample has in a run.
        targeted: run against the second likeliest class of x, the third, and so on,
            `n_target_classes` in all or as many as the model has; else against the class whose
            boundary is nearest, which takes a gradient for each class.
        n_restarts: runs (of each target); those after the first begin at random points at eps / 2
            (0.3, 1, 5 for Linf, L2, L1 without eps).
        alpha_max: the most that a step may turn back to x.
        eta: how far a step goes beyond the boundary.
        beta: how much of the way remains after a step back from an adversarial.
        mean, std, precision, engine, noise_device, generator: as `fastard.PGD`.
    Returns:
        x_adv: adversarials, x itself where there is none; detached, in x's dtype, device and memory
        format; or (x_adv, FABInfo) with return_info=True.
    Raises:
        TypeError, ValueError: bad input, in one sentence, before anything has changed.

    Croce & Hein 2020 (arXiv 1907.02044), github.com/fra31/auto-attack.
    """
    begun = time.perf_counter()
    kind, steps = parse_norm(norm), checks.steps(steps)
    n_restarts = checks.steps(n_restarts, "n_restarts")
    n_target_classes = checks.steps(n_target_classes, "n_target_classes")
    for name, value in (("alpha_max", alpha_max), ("eta", eta), ("beta", beta)):
        if checks.number(value, name) < 0:
            raise ValueError(f"{name} must not be negative, but is {value}.")
    if eps is not None and checks.number(eps, "eps") < 0:
        raise ValueError(f"eps must not be negative, but is {eps}.")
    y = checked(x, y, clip_min, clip_max)
    device = noise_place(noise_device, generator, x)

    walk = Walk(kind, steps, -1.0 if eps is None else eps, alpha_max, eta, beta, clip_min, clip_max)
    start = Start("uniform", True, kind, device, generator)
    program = Program(model, precision, mean=mean, std=std, engine=engine)
    verdict = Inference(model, "fp32", mean=mean, std=std, engine=False)
    runs = _Runs(program, walk, start, EPS[kind] if eps is None else eps, verdict)
    images = searched(x)
    with preserved_rng(start), program.running(images):
        adv, size = runs.all(images, y, n_restarts, n_target_classes if targeted else None)
    adv = returned(adv, x)
    if not return_info:
        return adv
    robust = verdict(adv).argmax(1) == y
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return adv, FABInfo(
        -size, runs.tests, program.explain(x.device), time.perf_counter() - begun,
        torch.zeros_like(robust), size, robust)  # fmt: skip


@dataclass
class _Runs:
    """A program, a setting, and the runs over the images that still withstand."""

    program: Program
    walk: Walk
    start: Start
    radius: float
    verdict: Inference
    tests: int = 0

    def _begin(self, x: Tensor, restart: int) -> Tensor | None:
        if restart == 0:
            return None
        draw = torch.rand if self.walk.norm == Norm.Linf else torch.randn
        noise = draw(x.shape, device=self.start.device, generator=self.start.generator,
                     dtype=torch.float32)  # fmt: skip
        return fab_start(
            x, noise, self.radius, self.walk.norm, self.walk.clip_min, self.walk.clip_max
        )

    def all(
        self, x: Tensor, y: Tensor, n_restarts: int, targets: int | None
    ) -> tuple[Tensor, Tensor]:
        """The images returned, contiguous, and their norms."""
        adv, size = x.contiguous().clone(), torch.full_like(y, torch.inf, dtype=x.dtype)
        if len(x) == 0:
            return adv, size
        search, walk = EngineSearch(self.program), self.walk
        logits = search.logits(x)
        checks.model_logits(logits)
        checks.labels_below(y, logits.shape[1], "y")
        right = logits.argmax(1) == y
        size = torch.where(right, size, 0.0)
        order = logits.argsort(1)
        if targets is not None:
            targets = min(targets, logits.shape[1] - 1)
        for place in places(n_restarts, targets):
            # Read once a run, never inside it.
            rows = (right & ~(size <= walk.limit)).nonzero()[:, 0]
            if len(rows) == 0:
                break
            goals = None if place.rank is None else order[rows, -place.rank]
            self.tests += walk.n_iter
            found, norms = search_boundary(
                search,
                x[rows],
                y[rows],
                walk,
                goals,
                self._begin(x[rows], place.restart),
                self.verdict,
            )
            counts = norms < FAR if walk.limit < 0 else norms <= walk.limit
            closer = counts & (norms < size[rows])
            column = per_sample(closer, x)
            adv[rows] = torch.where(column, found, adv[rows])
            size[rows] = torch.where(closer, norms, size[rows])
        return adv, size
