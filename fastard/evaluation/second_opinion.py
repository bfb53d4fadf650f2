"""The official AutoAttack's verdicts beside those of a suite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from fastard.autoattack import referee
from fastard.autoattack.report import ROBUST, Report
from fastard.data import ImageSet
from fastard.evaluation.attacks import AutoAttackParts, Setting
from fastard.evaluation.suites import SUITES
from fastard.kinds import unknown

REFEREES = ("official",)


def require_referee(name: str, suite: str, n: int) -> None:
    """Raises ValueError where this referee cannot judge this suite, n is no number of samples, or
    no official package is installed."""
    if name not in REFEREES:
        raise unknown("referee", name, REFEREES)
    if n < 1:
        raise ValueError(f"referee_n (--referee-n) must be at least 1, but is {n}.")
    if not list(_judged(suite)):
        fitting = ", ".join(name for name in SUITES if list(_judged(name)))
        raise ValueError(
            f"referee (--referee) judges AutoAttack: suite must be one of {fitting}, but is "
            f"{suite!r}."
        )
    if referee.installed() is None:
        raise ValueError(
            "referee (--referee) needs the official code: pip install pyautoattack, or "
            "git+https://github.com/fra31/auto-attack."
        )


def _judged(suite: str) -> Iterable[AutoAttackParts]:
    return (attack for attack in SUITES.get(suite, ()) if isinstance(attack, AutoAttackParts))


def second_opinion(
    setting: Setting, images: ImageSet, result: Mapping[str, Any], n: int
) -> dict[str, dict[str, Any]]:
    """Reruns the first n samples with the official code, for each AutoAttack of the suite.

    Returns: by the attack's key `told`, a sentence, and where the official code could judge
        `package`, `n` and `differing`, the samples whose verdicts differ.
    """
    rows = torch.arange(min(n, len(images)), device=images.device)
    found: dict[str, dict[str, Any]] = {}
    for parts in _judged(result["suite"]):
        if parts.key in result["reduced"]:
            told = f"{parts.title}: the official code runs no reduced suite, so it was not asked"
            found[parts.key] = {"told": told}
            continue
        attack = parts.made(setting)
        robust = torch.tensor(result["verdicts"][parts.key][: len(rows)], dtype=torch.bool)
        attack.report = Report(
            attack.version, tuple(attack.attacks_to_run), attack.norm, attack.epsilon,
            setting.seed, attack.compat, attack.engine, attack.precision, robust,
            [ROBUST if alive else parts.title for alive in robust.tolist()])  # fmt: skip
        agreed = referee.agreement(attack, images.float(rows), images.y[rows])
        found[parts.key] = {
            "told": f"{parts.title} by {agreed}",
            "package": agreed.package,
            "n": len(rows),
            "differing": agreed.differing,
        }
    return found
