"""Square Attack's restarts over the images that still withstand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastard import checks
from fastard import reference_square as plain
from fastard.attacks.draws import OfficialDraws
from fastard.attacks.square import Found, Logits, Reads, Told, square
from fastard.attacks.square_draws import KeyedSquares, OfficialSquares
from fastard.attacks.square_official import official_square
from fastard.attacks.square_schedule import Squares
from fastard.kinds import Norm


@dataclass
class Outcome:
    """What the restarts left.

    Attributes:
        adv: the images of the run that broke them, x where none did.
        robust: [B] bool; the network's last word was y (targeted: was not y).
        margin: the lowest reached, [B]. queries: forwards used, [B] int64; 0 where the network errs
            on x.
    """

    adv: Tensor
    robust: Tensor
    margin: Tensor
    queries: Tensor


def square_restarts(
    reads: Reads, x: Tensor, y: Tensor, ids: Tensor, setting: Squares, seed: float,
    n_restarts: int = 1, official: str | None = None, compacts: bool = True,
    exact: Logits | None = None, told: Told | None = None,
    judged: Callable[[int, Tensor], None] | None = None,
) -> Outcome:  # fmt: skip
    """Runs of Square, each on what the last ones left.

    Args:
        x: fp32 or fp64, contiguous [B, C, H, W].
        official: None: each sample's own numbers; "draws": the official code's, in its order;
            "operations": its operations too, in L2 and L1 also where `exact` is given.
        exact: the module itself, where `reads` asks a program of it: its word is the last.
        told: as `square`. judged: called after each run with its number and [B] bool, what is left.
    """
    ask = reads.images if exact is None else exact
    logits = ask(x.clone())
    checks.labels_below(y, logits.shape[1], "y")
    withstands = (logits.max(1)[1] == y) ^ setting.targeted
    margin = plain.margins(logits, y, False, setting.targeted)[0].clone()
    found_all = Outcome(x.clone(), withstands, margin, torch.zeros_like(y))
    shared = None if official is None else OfficialSquares(OfficialDraws(seed), setting.norm.name)
    for restart in range(n_restarts):
        left = found_all.robust.nonzero()[:, 0]
        if len(left) == 0:
            break
        here = setting
        if isinstance(setting.eps, Tensor) and setting.eps.numel() > 1:
            here = replace(setting, eps=setting.eps[left])
        rows = (x[left], y[left], ids[left])
        found: Found
        stepwise = exact is not None and setting.norm != Norm.Linf
        if shared is not None and (official == "operations" or stepwise):
            found = official_square(reads, *rows, here, shared, told, exact)
            if official != "operations":
                # The official projection may leave the box by a rounding.
                found.best.clamp_(setting.clip_min, setting.clip_max)
        else:
            draws = shared if shared is not None else KeyedSquares(int(seed), restart)
            found = square(reads, *rows, here, draws, compacts, told)
        verdict = (ask(found.best.clone()).max(1)[1] == rows[1]) ^ setting.targeted
        found_all.robust[left] = verdict
        found_all.adv[left[~verdict]] = found.best[~verdict]
        found_all.margin[left] = torch.fmin(margin[left], found.margin.to(margin.dtype))
        found_all.queries[left] += found.queries
        if judged is not None:
            judged(restart, found_all.robust)
    return found_all
