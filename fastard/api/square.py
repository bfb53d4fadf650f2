"""`square`: AutoAttack's Square Attack on one model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastard import checks
from fastard.api.attack import Bound
from fastard.api.images import checked, returned, searched
from fastard.api.search import EngineSearch
from fastard.attacks.square import Logits, Reads
from fastard.attacks.square_restarts import square_restarts
from fastard.attacks.square_schedule import Squares
from fastard.engine import Inference, Program
from fastard.engine.unwrap import Model
from fastard.kinds import Norm, parse_norm, unknown
from fastard.ops.pgd_step import as_bound

LOSSES = ("margin", "ce")
COMPATS = (None, "official")


@dataclass
class SquareInfo:
    """What `square` did.

    Attributes:
        queries: [B] int64, forwards used on the image, all restarts together; 0 where the model
            errs on it unattacked.
        margin: [B], the lowest logit margin reached: the true class's logit minus the greatest of
            the others (targeted: the greatest of the others minus the target's).
        robust: [B] bool; the module itself, not its program, still says y for the image returned
            (targeted: does not say y).
        program: what ran and why, as `Program.explain` says it.
        seconds: wall time of the call, the device synchronised at its end.
    """

    queries: Tensor
    margin: Tensor
    robust: Tensor
    program: str
    seconds: float


def asked_of(program: Program, images: Logits, prepared: Logits, x: Tensor) -> Reads:
    """How Square asks a program in its running block.

    Args:
        images: logits of images. prepared: of what the program reads, which Square writes itself
            where that has x's dtype.
    """
    feed = program.feed(x)
    if feed.is_x or feed.dtype != x.dtype:
        return Reads(images, images)
    return Reads(images, prepared, feed.mean, feed.std)


def square(
    model: Model,
    x: Tensor,
    y: Tensor,
    norm: str | float | Norm = "Linf",
    eps: Bound = 8 / 255,
    n_queries: int = 5000,
    *,
    p_init: float = 0.8,
    n_restarts: int = 1,
    loss: str = "margin",
    targeted: bool = False,
    resc_schedule: bool = False,
    seed: int = 0,
    ids: Tensor | None = None,
    clip_min: float = 0.0,
    clip_max: float = 1.0,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    precision: str | None = "fp32",
    engine: bool = True,
    compat: str | None = None,
    return_info: bool = False,
) -> Any:
    """Square Attack: a random search over square windows that needs no gradient.

    Equivalent to: ``SquareAttack(model, norm=norm, n_queries=n_queries, eps=eps, p_init=p_init,
    n_restarts=n_restarts, seed=seed, targeted=targeted, loss=loss,
    resc_schedule=resc_schedule).perturb(x, y)`` of the official package, with the same random
    numbers for compat="official", to the bit if also engine=False.

    Images that the model errs on are left out from the first run, those that a run broke from the
    next. The search is in fp32 whatever autocast says; the model is attacked in eval mode and left
    as it was, torch's generators too.

    Args:
        x: [B, C, H, W] in [clip_min, clip_max].
        y: labels [B], or the classes to reach if targeted.
        norm: "Linf", "L2", "L1" (aliases accepted).
        eps: radius in pixels, a number or one per sample.
        n_queries: proposals a run.
        p_init: the first windows' share of the pixels, in (0, 1].
        n_restarts: runs, each from its own start.
        loss: "margin" or "ce", what a proposal must lower; a targeted attack lowers the
            cross-entropy to its target.
        resc_schedule: shrink the windows as over 10,000 queries (AutoAttack: False).
        seed: of the windows and signs.
        ids: [B] int64, the samples; None: positions. Numbers are keyed by (seed, id, restart,
            query), so that batch size and order change nothing.
        mean, std, precision, engine: as `fastard.PGD`.
        compat: None, or "official": one generator's numbers, drawn on the CPU in the official
            code's order; the windows are then shared by the images left, so that the batch matters.
    Returns:
        x_adv: the images that the model errs on, x itself where none was found; detached, in x's
        dtype, device and memory format; or (x_adv, SquareInfo) with return_info=True.
    Raises:
        TypeError, ValueError: bad input, in one sentence, before anything has changed.

    Andriushchenko et al. 2020 (arXiv 1912.00049), github.com/fra31/auto-attack.
    """
    begun = time.perf_counter()
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    if compat not in COMPATS:
        raise unknown("compat", compat, ["None", "official"])
    n_queries = checks.steps(n_queries, "n_queries")
    n_restarts = checks.steps(n_restarts, "n_restarts")
    if not 0 < checks.number(p_init, "p_init") <= 1:
        raise ValueError(f"p_init must lie in (0, 1], but is {p_init}.")
    if compat == "official" and (clip_min, clip_max) != (0, 1):
        raise ValueError("compat='official' needs the box [0, 1].")
    y = checked(x, y, clip_min, clip_max)
    ball = parse_norm(norm)
    setting = Squares(
        ball, eps, n_queries, p_init, loss == "ce", targeted, resc_schedule, clip_min, clip_max
    )
    setting.require_fits(x)
    checks.radius(eps, x, "eps")
    checks.radius_values(eps, "eps")
    if ids is None:
        ids = torch.arange(len(x), device=x.device)
    ids = checks.labels(ids, len(x), x.device, "ids").to(torch.int64)

    images = searched(x).contiguous()
    if isinstance(eps, Tensor):
        setting = replace(setting, eps=as_bound(eps, images))
    program = Program(model, precision, mean=mean, std=std, engine=engine)
    search = EngineSearch(program)
    module = Inference(model, "fp32", mean=mean, std=std, engine=False)
    official = None if compat is None else ("draws" if engine else "operations")
    if len(x) == 0:
        nothing = images.new_zeros(0)
        empty = SquareInfo(y.clone(), nothing, y.bool(), "empty batch", 0.0)
        return (x.detach().clone(), empty) if return_info else x.detach().clone()

    with program.running(images):
        clean = search.logits(images.clone())
        checks.model_logits(clean)
        if clean.shape[1] < 2:
            raise ValueError("model must return at least 2 classes, but returns 1.")
        reads = asked_of(program, search.logits, search.infer_feed, images)
        found = square_restarts(
            reads, images, y, ids, setting, seed, n_restarts, official,
            exact=module if official == "draws" else None)  # fmt: skip
    adv = returned(found.adv, x)
    if not return_info:
        return adv
    verdict = module(adv).argmax(1) == y
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return adv, SquareInfo(
        found.queries, found.margin, verdict ^ targeted, program.explain(x.device),
        time.perf_counter() - begun)  # fmt: skip
