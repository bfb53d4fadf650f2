"""`apgd`: AutoAttack's Auto-PGD on one model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastard import checks, ops
from fastard.api.apgd_runs import LOSSES, Runs, ranks
from fastard.api.attack import AttackInfo, Bound
from fastard.attacks import Moves, Start, preserved_rng
from fastard.engine import Inference, Program
from fastard.engine.unwrap import Model
from fastard.kinds import Norm, parse_norm, unknown


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
    as it was. L1 starts at random: AutoAttack's schedule of larger radii is not part of this.

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
    checks.box(clip_min, clip_max)
    checks.generator(generator)
    checks.floating(x, "x")
    if x.dim() < 2:
        raise ValueError(f"x must be a batch of images [B, C, H, W], but is {list(x.shape)}.")
    checks.radius(eps, x, "eps")
    checks.radius_values(eps, "eps")
    checks.in_box(x, clip_min, clip_max)
    y = checks.labels(y, len(x), x.device).to(torch.int64)

    moves = Moves(eps, 0.0, parse_norm(norm), clip_min, clip_max)
    device = checks.device(noise_device, "noise_device")
    if device is None:
        device = generator.device if generator is not None else x.device
    start = Start("uniform", True, moves.norm, device, generator)
    program = Program(model, precision, mean=mean, std=std, engine=engine)
    runs = Runs(program, moves, start, loss, steps, rho, eot_iter, return_info)
    images = x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()
    dense = torch.empty_like(images)
    if images.stride() != dense.stride():
        images = dense.copy_(images)
    places = list(ranks(loss, n_restarts, n_target_classes))
    with preserved_rng(start), program.running(images):
        adv, losses, broken = runs.all(images, y, places, best_loss)
    if adv.dtype != x.dtype:
        adv = ops.round_towards(adv, x.detach())
    if not return_info:
        return adv
    robust = Inference(model, "fp32", mean=mean, std=std, engine=False)(adv).argmax(1) == y
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return adv, APGDInfo(
        losses, runs.iterations, program.explain(x.device), time.perf_counter() - begun, broken,
        robust)  # fmt: skip
