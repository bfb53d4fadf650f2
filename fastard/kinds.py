"""Norms, losses and starts by name: the int codes that operators take."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from enum import IntEnum


class Norm(IntEnum):
    """Which ball bounds the perturbation."""

    Linf = 0
    L2 = 1
    L1 = 2


class LossKind(IntEnum):
    """Which row loss seeds the backward pass."""

    kl = 0
    ce = 1
    mixture = 2
    margin = 3
    dlr = 4


class StartKind(IntEnum):
    """How an attack starts."""

    uniform = 0
    gaussian = 1


_NORMS = {
    "linf": Norm.Linf, "l_inf": Norm.Linf, "inf": Norm.Linf, "l2": Norm.L2, "l_2": Norm.L2,
    "2": Norm.L2, "l1": Norm.L1, "l_1": Norm.L1, "1": Norm.L1,
}  # fmt: skip
MOST_LISTED = 50
_LOSSES = {kind.name: kind for kind in LossKind} | {"cw": LossKind.margin}


def nearest(given: str, names: Sequence[str], cutoff: float = 0.6) -> list[str]:
    """The known names that `given` may mean, the likeliest first."""
    near = difflib.get_close_matches(given, names, n=5, cutoff=cutoff)
    # A word that was written out or cut short before all others: epsilon, eps.
    near.sort(key=lambda name: not (name.startswith(given) or given.startswith(name)))
    return near


def unknown(what: str, given: object, known: Iterable[str]) -> ValueError:
    """The one sentence for a name that is not known: the list, a long one in part, and the nearest.

    The list stands in its own order; of more than 50 names only the nearest are told.
    """
    names = list(known)
    near = nearest(str(given), names)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    if len(names) > MOST_LISTED:
        names = [*(near or names[:5]), f"and {len(names) - len(near or names[:5])} more"]
    return ValueError(f"unknown {what} {given!r}{hint}; known: {', '.join(names)}.")


def parse_norm(norm: str | float | Norm) -> Norm:
    """'Linf', 'L2', 'L1' and their aliases ('l_inf', 'inf', numpy.inf, 2, 1) as a `Norm`."""
    # The usual spelling first: this runs at every call of a small operator.
    if norm == "Linf":
        return Norm.Linf
    if isinstance(norm, Norm):
        return norm
    if isinstance(norm, (int, float)) and norm in (1, 2, math.inf):
        return {1: Norm.L1, 2: Norm.L2, math.inf: Norm.Linf}[norm]
    found = _NORMS.get(str(norm).lower())
    if found is None:
        raise unknown("norm", norm, ("Linf", "L2", "L1"))
    return found


def parse_loss(kind: str | LossKind) -> LossKind:
    """'kl', 'ce', 'mixture', 'margin' (alias 'cw'), 'dlr' as a `LossKind`."""
    if isinstance(kind, LossKind):
        return kind
    found = _LOSSES.get(str(kind).lower())
    if found is None:
        raise unknown("loss", kind, (k.name for k in LossKind))
    return found
