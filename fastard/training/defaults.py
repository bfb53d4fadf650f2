"""Where the settings of a training run come from: the user, the recipe, the data set."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fastard import methods
from fastard.device import resolve_device
from fastard.kinds import Norm, parse_norm
from fastard.methods.recipes import Preset
from fastard.methods.registry import METHODS
from fastard.training.config import Resolved, TrainConfig
from fastard.training.config_file import require_kinds, with_file
from fastard.training.limits import LR_GAMMA, require_valid


@dataclass(frozen=True)
class DataDefaults:
    """What a data set brings along."""

    eps: float
    val: int
    recipe: dict[str, Any] = field(default_factory=dict)
    """Replaces the hyper-parameters of recipes made for CIFAR, unless they are official."""


_SMALL = {"student": "small_cnn", "schedule": "cosine", "milestones": (), "weight_decay": 5e-4}
_CIFAR = DataDefaults(eps=8 / 255, val=1000)
DATA_DEFAULTS = {
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "imagenet": DataDefaults(eps=4 / 255, val=1000),
    "mnist": DataDefaults(0.3, 1000, {**_SMALL, "epochs": 20, "lr": 0.05}),
    "digits": DataDefaults(0.15, 200, {**_SMALL, "epochs": 40, "lr": 0.05, "batch_size": 64}),
}

_FROM_RECIPE = (
    *("student", "epochs", "batch_size", "lr", "schedule", "weight_decay", "momentum"),
    *("nesterov", "val_steps", "val_alpha", "eval_every", "eval_from"),
)
EMA_DECAY = 0.999
# What a recipe may set as well, and what holds where it does not.
_OTHERWISE = {
    "lr_gamma": LR_GAMMA,
    "sgd": "auto",
    "parallel": "ddp",
    "average": "none",
    "awp_gamma": 0.0,
    "awp_warmup": 0,
}


def resolve(config: TrainConfig) -> Resolved:
    """Returns the config with every value filled in, its file's included.

    Raises ValueError for a setting that cannot be, FileNotFoundError for a file that is not there.
    """
    require_kinds(config)
    config = with_file(config)
    if config.method is None:
        raise ValueError(f"method must be given, one of {', '.join(methods.presets())}.")
    preset = methods.preset(config.method)
    name = "digits" if config.data is None else config.data
    config = replace(config, data=name, seed=0 if config.seed is None else config.seed)
    data = DATA_DEFAULTS.get(name, _CIFAR)
    recipe = {**asdict(preset), **preset.recipe_by_data.get(name, {})}
    if not preset.official:
        recipe |= data.recipe
    if config.milestones:
        recipe["schedule"] = "multistep"
    values = {item.name: getattr(config, item.name) for item in fields(TrainConfig)}
    for name in _FROM_RECIPE:
        if values[name] is None:
            values[name] = recipe[name]
    for name, value in _OTHERWISE.items():
        if values[name] is None:
            values[name] = recipe.get(name, value)
    if values["peak"] is None and values["schedule"] == preset.schedule:
        values["peak"] = preset.peak
    if config.ema_decay is None and values["average"] == "ema":
        values["ema_decay"] = recipe.get("ema_decay", EMA_DECAY)
    # What a recipe says of a part that is left out has no effect.
    if config.lr_gamma is None and values["schedule"] != "multistep":
        values["lr_gamma"] = LR_GAMMA
    if config.awp_warmup is None and not values["awp_gamma"]:
        values["awp_warmup"] = 0
    values |= _attack(config, preset, data.eps)
    # The published formula divides by the batch size of its loader.
    if "nominal_batch" in values["options"] and "nominal_batch" not in config.options:
        values["options"]["nominal_batch"] = values["batch_size"]
    values |= _selection(config, preset, data.val)
    values["milestones"] = _milestones(values, recipe)
    values["val_alpha"] = _first(values["val_alpha"], values["eps"] / 4)
    values["average_start"] = _first(values["average_start"], _average_start(values, preset))
    values["device"] = str(resolve_device(config.device))
    if values["out"] is None:
        values["out"] = Path("runs") / f"{config.method}-{config.data}-{values['student']}"
    values["config"] = None
    resolved = Resolved(**values)
    require_valid(resolved)
    return resolved


def _milestones(values: dict[str, Any], recipe: dict[str, Any]) -> tuple[int, ...]:
    if values["milestones"] is not None or values["schedule"] != "multistep":
        return values["milestones"] or ()
    return tuple(round(m * values["epochs"] / recipe["epochs"]) for m in recipe["milestones"])


def _average_start(values: dict[str, Any], preset: Preset) -> int:
    epochs = values["epochs"]
    if preset.average_start is not None and values["average"] == preset.average:
        before = round((preset.average_start - 1) * epochs / preset.epochs)
        return min(epochs, before + 1)
    return max(1, math.ceil(0.75 * epochs)) if values["average"] == "swa" else 1


def _attack(config: TrainConfig, preset: Preset, data_eps: float) -> dict[str, Any]:
    method = METHODS[preset.method]
    options = {**preset.options_for(config.data), **config.options}
    method.plain_options(options)
    # What a base brings along for the data set stands behind recipe and user.
    options = {**method.data_options(options, config.data), **options}
    given = {name: options.pop(name, None) for name in ("eps", "alpha", "steps", "norm")}
    norm = _first(config.norm, given["norm"], "Linf")
    # A radius belongs to its norm, a step size to the radius that it came with.
    own = parse_norm(norm) == parse_norm(_first(given["norm"], "Linf"))
    eps = config.eps if config.eps is not None else given["eps"] if own else None
    if eps is None:
        if parse_norm(norm) != Norm.Linf:
            raise ValueError(
                f"eps (--eps) must be given with norm {norm!r}: {data_eps:.5g}, the radius of "
                f"{config.data}, is Linf's."
            )
        eps = data_eps
    alpha = given["alpha"] if eps == given["eps"] else None
    return {
        "eps": eps,
        "alpha": _first(config.alpha, alpha, eps / 4),
        "steps": _first(config.steps, given["steps"], 10),
        "norm": norm,
        "options": options,
    }


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _selection(config: TrainConfig, preset: Preset, data_val: int) -> dict[str, Any]:
    selection: str | None = config.selection
    val = config.val
    if selection is None and val is not None:
        selection = "held-out" if val > 0 else "last"
    elif selection is None:
        selection = preset.selection
    if val is None:
        val = data_val if selection == "held-out" else 0
    return {"selection": selection, "val": val}
