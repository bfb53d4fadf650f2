"""Settings as YAML: a run's config.yaml, and the files that a run is started from."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from fastard.kinds import unknown
from fastard.training.config import Resolved, TrainConfig

# What says how a run is started, not what it is.
_NOT_KEPT = ("config", "resume", "allow_changes", "dry_run")
# Of another one of the second, the first has to be given anew.
DECIDED_BY = {
    "milestones": "schedule",
    "lr_gamma": "schedule",
    "peak": "schedule",
    "ema_decay": "average",
    "average_start": "average",
    "awp_warmup": "awp_gamma",
}
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The settings of the run as plain values, fit for YAML."""
    values = {k: v for k, v in asdict(config).items() if k not in _NOT_KEPT}
    for name, value in values.items():
        if isinstance(value, Path):
            values[name] = str(value)
        elif isinstance(value, tuple):
            values[name] = list(value)
    return values


def from_dict(values: Mapping[str, Any]) -> Resolved:
    """The config that `to_dict` wrote; raises ValueError where a value is missing or unknown."""
    config = Resolved(**plain(values))
    missing = [name for name in Resolved.__annotations__ if getattr(config, name) is None]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return config


def load_config(path: str | Path) -> TrainConfig:
    """Reads the settings in a YAML file; those that it does not hold are left out.

    Raises as `named_in`.
    """
    return TrainConfig(**named_in(path))


def named_in(path: str | Path) -> dict[str, Any]:
    """The settings that a YAML file names, whatever they are.

    Raises FileNotFoundError when there is no such file, and ValueError for one that is no YAML, an
    unknown setting or a value of the wrong kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"config (--config) must be a YAML file, but there is none: {path}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".:")
        raise ValueError(f"config {path} is not readable as YAML: {reason}.") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"config {path} must hold settings by name, but holds a {type(values).__name__}."
        )
    return plain(values, source=f" in {path}")


def with_file(config: TrainConfig) -> TrainConfig:
    """The settings of `config.config` under those given beside it."""
    if config.config is None:
        return config
    base = load_config(config.config)
    default = TrainConfig()
    given = {
        item.name: getattr(config, item.name)
        for item in fields(TrainConfig)
        if getattr(config, item.name) != getattr(default, item.name)
    }
    for name, decider in DECIDED_BY.items():
        if decider in given and name not in given:
            given[name] = None
    given["options"] = {**base.options, **config.options}
    return replace(base, **given)


def require_kinds(config: TrainConfig) -> None:
    """Raises TypeError for a setting of another kind than its own."""
    hints = get_type_hints(TrainConfig, include_extras=True)
    for item in fields(TrainConfig):
        value, hint = getattr(config, item.name), hints[item.name]
        try:
            _as(str(value) if isinstance(value, Path) else value, hint)
        except TypeError:
            kind = type(value).__name__
            raise TypeError(f"{item.name} must be {_said(hint)}, but is a {kind}.") from None


def plain(values: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """Plain values as the settings that they are; raises ValueError for one that is none."""
    hints = get_type_hints(TrainConfig, include_extras=True)
    found = {}
    for name, value in values.items():
        if name not in hints or name in _NOT_KEPT:
            raise unknown(f"setting{source}", name, [n for n in hints if n not in _NOT_KEPT])
        try:
            found[name] = _as(value, hints[name])
        except TypeError:
            raise ValueError(
                f"{name}{source} must be {_said(hints[name])}, but is {value!r}."
            ) from None
    return found


def _as(value: Any, hint: Any) -> Any:
    """The value as what the hint says; raises TypeError where it cannot be."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _as([value] if isinstance(value, str) else value or [], get_args(hint)[0])
    if origin in (Union, types.UnionType):
        for one in get_args(hint):
            try:
                return _as(value, one)
            except TypeError:
                continue
        raise TypeError
    if origin is Literal:
        # Its own check lists the words and suggests the nearest.
        return _as(value, str)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_as(one, get_args(hint)[0]) for one in value)
    if origin is dict and isinstance(value, dict):
        return {str(name): _as(one, get_args(hint)[1]) for name, one in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
        # YAML 1.1 takes 1e-3, without a point, for a text.
        return float(value)
    if origin is None and type(value) is hint:
        return value
    raise TypeError


def _said(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _said(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_said(one) for one in inner)
    if origin is tuple:
        return f"a list of {_said(inner[0])}"
    if origin is dict:
        return "settings by name"
    names = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    return names.get(hint, "nothing" if hint is type(None) else "a text")
