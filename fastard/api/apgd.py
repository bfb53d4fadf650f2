"""`apgd`: AutoAttack's Auto-PGD on one model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastard import checks
from fastard.api.attack import AttackInfo, Bound
from fastard.api.images import checked, noise_place, returned, searched
from fastard.api.search import EngineSearch
from fastard.attacks import Start, preserved_rng
from fastard.attacks.apgd_runs import Outcome, Rows, Runs, Setting, all_runs
from fastard.attacks.draws import GeneratorDraws
from fastard.attacks.places import places
from fastard.engine import Inference, Program
from fastard.engine.unwrap import Model
from fastard.kinds import Norm, parse_norm, unknown

LOSSES = ("ce", "dlr", "dlr-targeted")


@dataclass
class APGDInfo(AttackInfo):
    """What `apgd` did: `AttackInfo`, with the model's verdict.

    `loss` is the highest one reached in any run, -inf where none was made because the model
    errs on the clean image.

    Attributes:
        robust: bool [B]; the module itself, not its program, still says y for the image returned.
    """

    robust: Tensor


def apgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    norm: str | float | Norm = "Linf",
    eps: Bound = 8 / 255,
    steps: int = 100,
    *,
    loss: str = "ce",
    n_restarts: int = 1,
    n_target_classes: int = 9,
    rho: float = 0.75,
    eot_iter: int = 1,
    best_loss: bool = False,
    large_eps: bool = False,
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
    """Auto-PGD: PGD whose step sizes set themselves, as AutoAttack runs it.

    Equivalent to: ``APGDAttack(model, n_iter=steps, norm=norm, eps=eps, n_restarts=n_restarts,
    loss=loss, rho=rho, eot_iter=eot_iter, seed=seed).perturb(x, y, best_loss)`` of the official
    package (with "dlr-targeted", `APGDAttack_targeted`), for a generator of that seed and
    noise_device="cpu".

    Images that the model errs on are left out from the first run, those that a run broke from the
    next. The search is in fp32 whatever autocast says; the model is attacked in eval mode and left
    as it was. L1 starts at random unless `large_eps` is set.

    Args:
        x: [B, C, H, W] in [clip_min, clip_max].
        y: labels [B].
        norm: "Linf", "L2", "L1" (aliases accepted).
        eps: radius in pixels, a number or one per sample.
        steps: iterations a run.
        loss: "ce", "dlr" (at least 3 classes), or "dlr-targeted" (at least 4), which runs against
            the second likeliest class of x, the third, and so on, `n_target_classes` in all or as
            many as the model has.
        n_restarts: runs, each from its own start (of each target).
        rho: the share of rises in the loss up to which a step size halves.
        eot_iter: gradients averaged at each point, for a random model.
        best_loss: return the images of highest loss, of all runs on all images.
        large_eps: L1: 0.3 of the steps in a ball of radius 3 eps, 0.3 at 2 eps, the rest at eps,
            each from the best point of the one before, as AutoAttack's standard L1 version does;
            the start is drawn on noise_device too.
        mean, std, precision, engine, noise_device, generator: as `fastard.PGD`.
    Returns:
        x_adv: the latest image that the model erred on, x itself where there was none; detached, in
        x's dtype, device and memory format; or (x_adv, APGDInfo) with return_info=True.
    Raises:
        TypeError, ValueError: bad input, in one sentence, before anything has changed.

    Croce & Hein 2020 (arXiv 2003.01690) and 2021 (L1), github.com/fra31/auto-attack.
    """
    begun = time.perf_counter()
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    steps, n_restarts = checks.steps(steps), checks.steps(n_restarts, "n_restarts")
    n_target_classes = checks.steps(n_target_classes, "n_target_classes")
    eot_iter = checks.steps(eot_iter, "eot_iter")
    if not 0 < checks.number(rho, "rho") <= 1:
        raise ValueError(f"rho must lie in (0, 1], but is {rho}.")
    if best_loss and loss == "dlr-targeted":
        raise ValueError("best_loss goes with loss 'ce' or 'dlr': targets' losses do not compare.")
    kind = parse_norm(norm)
    if large_eps and (kind != Norm.L1 or best_loss):
        raise ValueError(
            f"large_eps goes with norm 'L1' and without best_loss, but norm is {kind.name} and "
            f"best_loss {bool(best_loss)}."
        )
    if large_eps and steps < 3:
        raise ValueError(f"steps must be at least 3 with large_eps, but is {steps}.")
    y = checked(x, y, clip_min, clip_max)
    checks.radius(eps, x, "eps")
    checks.radius_values(eps, "eps")
    device = noise_place(noise_device, generator, x)

    start = Start("uniform", True, kind, device, generator)
    program = Program(model, precision, mean=mean, std=std, engine=engine)
    runs = Runs(
        EngineSearch(program, compacts=False), GeneratorDraws(generator, device),
        Setting(kind, steps, loss, float(rho), eot_iter, clip_min, clip_max, large_eps=large_eps),
        look_for_broken=return_info)  # fmt: skip
    images = searched(x)
    dense = torch.empty_like(images)
    if images.stride() != dense.stride():
        images = dense.copy_(images)
    with preserved_rng(start), program.running(images):
        found = _searched(runs, images, y, eps, n_restarts, n_target_classes, best_loss)
    adv = returned(found.adv, x)
    if not return_info:
        return adv
    robust = Inference(model, "fp32", mean=mean, std=std, engine=False)(adv).argmax(1) == y
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return adv, APGDInfo(
        found.loss, runs.iterations, program.explain(x.device), time.perf_counter() - begun,
        found.broken, robust)  # fmt: skip


def _searched(
    runs: Runs, x: Tensor, y: Tensor, eps: Bound, n_restarts: int, n_target_classes: int,
    best_loss: bool,
) -> Outcome:  # fmt: skip
    rows = Rows(x, y, torch.arange(len(x), device=x.device), eps)
    if len(x) == 0:
        losses = torch.full_like(y, -torch.inf, dtype=x.dtype)
        return Outcome(x.clone(), losses, y == y, y != y)
    logits = runs.search.logits(x)
    checks.model_logits(logits)
    checks.labels_below(y, logits.shape[1], "y")
    targets = None
    if runs.setting.loss == "dlr-targeted":
        targets = min(n_target_classes, logits.shape[1] - 1)
    return all_runs(runs, rows, logits, list(places(n_restarts, targets)), best_loss)
