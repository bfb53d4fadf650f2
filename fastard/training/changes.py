"""What a resumed run may be told, beside what it was started with."""

from __future__ import annotations

from dataclasses import fields, replace

from fastard.training.config import Resolved, TrainConfig
from fastard.training.config_file import with_file

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
    ),
}
# A state of other ones is no state of this run.
FIXED = ("method", "data", "student", "mean", "std")


def resumed(config: TrainConfig, saved: Resolved) -> Resolved:
    """The saved run's config, continued.

    Raises ValueError listing every setting that differs from what the run was started with, unless
    `config.allow_changes`; method, data, student and its normaliser never may.
    """
    config = with_file(config)
    default = TrainConfig()
    free, changed = {}, {}
    for item in fields(TrainConfig):
        name = item.name
        asked, before = getattr(config, name), getattr(saved, name)
        if asked == getattr(default, name):
            continue
        if name in FREE:
            free[name] = asked
            continue
        if name == "options":
            asked = {**before, **asked}
        if asked != before:
            changed[name] = (before, asked)
    said = "; ".join(f"{name} was {old}, now {new}" for name, (old, new) in changed.items())
    fixed = [name for name in changed if name in FIXED]
    if fixed:
        raise ValueError(
            f"{' and '.join(fixed)} must stay the same in the resumed run {config.out}: {said}."
        )
    if changed and not config.allow_changes:
        raise ValueError(
            f"the resumed run {config.out} was started with other settings: {said}; give "
            "--allow-changes to go on with the new ones."
        )
    return replace(saved, **free, **{name: new for name, (_, new) in changed.items()})
