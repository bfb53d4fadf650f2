"""The radius that a network is attacked with where none is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastard.kinds import Norm, parse_norm

REFERENCE_EPS = 8 / 255


def trained_radius(trained: Sequence[Mapping[str, Any]], norm: str) -> float:
    """The radius that the networks were trained with in this norm, else 8/255 in Linf.

    Args:
        trained: what each checkpoint says of its run: `eps` and `norm`, if it says so.

    Raises:
        ValueError: they were trained with several, or with none in a norm other than Linf.
    """
    kind = parse_norm(norm)
    own = {
        float(run["eps"])
        for run in trained
        if "eps" in run and parse_norm(run.get("norm", "Linf")) == kind
    }
    if len(own) > 1:
        told = ", ".join(f"{eps:.5g}" for eps in sorted(own))
        raise ValueError(f"eps (--eps) must be given: the networks were trained with {told}.")
    if own:
        return own.pop()
    if kind != Norm.Linf:
        raise ValueError(f"eps (--eps) must be given with norm {norm!r}: no checkpoint has one.")
    return REFERENCE_EPS
