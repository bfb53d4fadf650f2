"""Which attacks a version runs, with which settings, and what fewer classes leave of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from fastard.engine.passes import NoGradient
from fastard.kinds import unknown

ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
VERSIONS: dict[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}

# Which of an AutoAttack's four attacks each is, and what of them a version may not change.
_PART = {
    "apgd-ce": "apgd", "apgd-dlr": "apgd", "apgd-t": "apgd_targeted", "fab": "fab", "fab-t": "fab",
    "square": "square",
}  # fmt: skip
_APGD = ("eps", "n_iter", "n_restarts", "eot_iter", "thr_decr", "use_largereps")
_SETTINGS = {
    "apgd": _APGD,
    "apgd_targeted": (*_APGD, "n_target_classes"),
    "fab": ("eps", "n_iter", "n_restarts", "n_target_classes", "alpha_max", "eta", "beta"),
    "square": ("eps", "n_queries", "n_restarts", "p_init", "loss", "rescale_schedule"),
}

# Of a model of so many classes: what runs in an attack's place, if anything does.
_REPLACED: dict[int, dict[str, str | None]] = {
    2: {"apgd-dlr": None, "apgd-t": None, "fab-t": "fab"}, 3: {"apgd-t": "apgd-dlr"},
}  # fmt: skip


def check_attacks(attacks: Sequence[str]) -> list[str]:
    """The attacks as a list; raises ValueError for a name that is not known."""
    if isinstance(attacks, str):
        raise TypeError(f"attacks_to_run must be a list of names, but is the text {attacks!r}.")
    for name in attacks:
        if name not in ATTACKS:
            raise unknown("attack", name, ATTACKS)
    return list(attacks)


def configure(
    version: str, norm: str, apgd: Any, apgd_targeted: Any, fab: Any, square: Any
) -> None:
    """Gives the attacks a version's settings, as the official `set_version` does."""
    if version == "standard":
        apgd.n_restarts, apgd_targeted.n_target_classes = 1, 9
        if norm == "L1":
            apgd.use_largereps = apgd_targeted.use_largereps = True
            apgd.n_restarts, apgd_targeted.n_target_classes = 5, 5
        fab.n_restarts = apgd_targeted.n_restarts = 1
        fab.n_target_classes, square.n_queries = 9, 5000
    elif version == "plus":
        apgd.n_restarts, fab.n_restarts, apgd_targeted.n_restarts = 5, 5, 1
        fab.n_target_classes = apgd_targeted.n_target_classes = 9
        square.n_queries = 5000
    elif version == "rand":
        apgd.n_restarts, apgd.eot_iter = 1, 20


def settings_of(attacks: Mapping[str, Any]) -> dict[str, SimpleNamespace]:
    """What makes a version of the attacks "apgd", "apgd_targeted", "fab" and "square"."""
    return {
        name: SimpleNamespace(**{key: getattr(attack, key, None) for key in _SETTINGS[name]})
        for name, attack in attacks.items()
    }


def changed(
    version: Mapping[str, SimpleNamespace], now: Mapping[str, SimpleNamespace],
    attacks: Sequence[str], runs: Sequence[str],
) -> list[str]:  # fmt: skip
    """Each setting that differs from the version's, of the attacks that run, as it is now.

    Args:
        version, now: `settings_of` the attacks. attacks: the version's; runs: those that run.
    """
    said = [] if list(runs) == list(attacks) else [f"attacks_to_run={', '.join(runs) or 'none'}"]
    for part in dict.fromkeys(_PART[name] for name in runs):
        for key, value in vars(now[part]).items():
            if value != getattr(version[part], key):
                said.append(f"{part}.{key}={value}")
    return said


@dataclass(frozen=True)
class Plan:
    """The attacks of a run, at most so many targets each, and why they are fewer than asked for."""

    attacks: tuple[str, ...]
    most_targets: int
    reductions: tuple[str, ...] = ()


def plan(attacks: Sequence[str], classes: int, apgd_targets: int, fab_targets: int) -> Plan:
    """What a model of so many classes allows.

    Targets are at most classes - 1. The targeted DLR loss needs four classes (APGD-DLR stands in
    for it), the untargeted one three (APGD-CE alone is left); with two, FAB needs no target.

    Raises:
        ValueError: the model has fewer than two classes.
    """
    if classes < 2:
        raise ValueError(f"the model must have at least 2 classes, but answers {classes} logit.")
    chosen: list[str] = []
    said = []
    for name in attacks:
        instead = _REPLACED.get(classes, {}).get(name, name)
        if instead != name:
            said.append(f"{name.upper()} {_instead(instead)} with {classes} classes")
        if instead is not None and (instead == name or instead not in (*attacks, *chosen)):
            chosen.append(instead)
    if not chosen and attacks:
        chosen = ["apgd-ce"]
        said[-1] += ", APGD-CE runs instead"
    for name, targets in (("apgd-t", apgd_targets), ("fab-t", fab_targets)):
        if name in chosen and targets > classes - 1:
            said.append(f"{name.upper()} has {classes - 1} targets, not {targets}")
    return Plan(tuple(chosen), classes - 1, tuple(said))


def without_gradients(chosen: Plan, why: str) -> Plan:
    """What is left of a plan where the model has no gradient.

    Raises:
        NoGradient: it has no Square, which alone needs none.
    """
    left = tuple(name for name in chosen.attacks if name == "square")
    if not left:
        raise NoGradient(f"{', '.join(chosen.attacks)} cannot run without a gradient: {why}")
    said = f"gradient attacks left out: {why.rstrip('.')}"
    return replace(chosen, attacks=left, reductions=(*chosen.reductions, said))


def _instead(name: str | None) -> str:
    return "is left out" if name is None else f"becomes {name.upper()}"


@contextmanager
def settings(owner: Any, name: str, most_targets: int) -> Iterator[Any]:
    """The attack `name` of an AutoAttack, set to run; afterwards its settings are as before."""
    changed: dict[str, Any] = {}
    if name.startswith("fab"):
        attack = owner.fab
        changed["targeted"] = name == "fab-t"
        if name == "fab-t":
            changed["n_restarts"] = 1
            changed["n_target_classes"] = min(attack.n_target_classes, most_targets)
    elif name == "apgd-t":
        attack = owner.apgd_targeted
        changed["n_target_classes"] = min(attack.n_target_classes, most_targets)
    elif name == "square":
        attack = owner.square
    else:
        attack = owner.apgd
        changed["loss"] = name.removeprefix("apgd-")
    kept = {key: getattr(attack, key) for key in (*changed, "seed")}
    for key, value in changed.items():
        setattr(attack, key, value)
    try:
        yield attack
    finally:
        for key, value in kept.items():
            setattr(attack, key, value)
