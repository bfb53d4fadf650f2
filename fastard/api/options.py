"""The keywords that every attack function takes, for type checkers and editors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import TypedDict

from fastard.kinds import nearest


class CommonOptions(TypedDict, total=False):
    """Keywords of every attack; `fastard.PGD` says what each means."""

    norm: str | float
    random_start: bool | str
    clip_start: bool | None
    targeted: bool
    clip_min: float
    clip_max: float
    mean: Sequence[float] | Tensor | None
    std: Sequence[float] | Tensor | None
    n_restarts: int
    mode: str
    bn_stats: str
    precision: str | None
    engine: bool
    capture: str
    check_logits: bool
    l1_sparsity: float
    noise_device: str | torch.device | None
    generator: torch.Generator | None
    return_info: bool


class KLOptions(CommonOptions, total=False):
    """Keywords of the KL attacks."""

    temperature: float


class PGDOptions(KLOptions, total=False):
    """Keywords of `pgd`."""

    kappa: float
    mix: float


def require_known(of: str, options: Mapping[str, object], known: Iterable[str]) -> None:
    """Raises TypeError for a keyword that the function `of` does not take."""
    names = sorted(known)
    for name in options:
        if name not in names:
            near = nearest(name, names, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise TypeError(f"{of} takes no keyword {name!r}{hint}")
