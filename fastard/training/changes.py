"""What a resumed run may be told, beside what it was started with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fastard.training.config import Resolved, TrainConfig
from fastard.training.config_file import DECIDED_BY, named_in, with_file

Changes = Mapping[str, tuple[Any, Any]]
"""What a setting was and what it is now, by name."""

# What may differ between the first and the resumed part of one run.
FREE = {
    *("config", "resume", "allow_changes", "dry_run", "out", "device", "threads"),
    *(
        "download",
        "data_root",
        "teacher_cache_folder",
        "workers",
        "save_every_steps",
        "save_every_minutes",
        "no_tensorboard",
        "parallel",
    ),
}
# A state of other ones is no state of this run.
FIXED = ("method", "data", "student", "mean", "std", "no_decay_norm_bias")
# They say what batches an epoch has.
WHOLE_EPOCHS = (
    *("batch_size", "train_n", "val", "extra", "original_share", "image_size", "streamed"),
)


def resumed(config: TrainConfig, saved: Resolved) -> Resolved:
    """The saved run's config, continued.

    Raises ValueError listing every setting that differs from what the run was started with, unless
    `config.allow_changes`; method, data, student and what else a state depends on never may.
    """
    named = {} if config.config is None else named_in(config.config)
    config = with_file(config)
    default = TrainConfig()
    free, changed = {}, {}
    for item in fields(TrainConfig):
        name = item.name
        asked, before = getattr(config, name), getattr(saved, name)
        if asked == getattr(default, name) and name not in named:
            continue
        if asked is None and (name in FREE or name in Resolved.__annotations__):
            continue
        if name in FREE:
            free[name] = asked
            continue
        if name == "options":
            asked = {**before, **asked}
        if asked != before:
            changed[name] = (before, asked)
    _refuse_fixed(changed, f"the resumed run {config.out}")
    if changed and not config.allow_changes:
        raise ValueError(
            f"the resumed run {config.out} was started with other settings: {_said(changed)}; give "
            "--allow-changes to go on with the new ones."
        )
    now = {name: new for name, (_, new) in changed.items()}
    anew: dict[str, Any] = {
        name: None for name, by in DECIDED_BY.items() if by in changed and name not in changed
    }
    return replace(saved, **free, **now, **anew)


def require_continuable(
    state: Path, before: Mapping[str, Any], now: Mapping[str, Any], step: int, *, allowed: bool
) -> None:
    """Raises ValueError where a state saved with the settings `before` cannot go on with others.

    Args:
        state: the file, to be named.
        before, now: settings as `to_dict` gives them.
        step: of the unfinished epoch that the state is in; 0 at an epoch's end.
        allowed: whether changes are allowed at all.
    """
    # A state may be older than a setting.
    names = [name for name in now if name not in FREE and now[name] != before.get(name, now[name])]
    changed = {name: (before[name], now[name]) for name in names}
    _refuse_fixed(changed, f"the run of {state}")
    if changed and not allowed:
        raise ValueError(
            f"{state} was saved with other settings than config.yaml names: {_said(changed)}; give "
            "--allow-changes to go on with the new ones."
        )
    if step and (within := {name: changed[name] for name in WHOLE_EPOCHS if name in changed}):
        raise ValueError(
            f"{_listed(within)} may change at an epoch's end only, but {state} is at step {step} "
            f"of an epoch: {_said(within)}."
        )


def _refuse_fixed(changed: Changes, where: str) -> None:
    fixed = [name for name in changed if name in FIXED]
    if "teacher" in changed and len({len(teachers) for teachers in changed["teacher"]}) > 1:
        fixed.append("the number of teachers")
    if fixed:
        raise ValueError(f"{_listed(fixed)} must stay the same in {where}: {_said(changed)}.")


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names)


def _said(changed: Changes) -> str:
    return "; ".join(f"{name} was {old}, now {new}" for name, (old, new) in changed.items())
