"""The settings of a training run and where their defaults come from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from fastard import methods
from fastard.device import resolve_device
from fastard.kinds import parse_norm, unknown
from fastard.methods.recipes import SELECTIONS, Preset
from fastard.methods.registry import METHODS
from fastard.schedules import SCHEDULES


@dataclass(kw_only=True)
class TrainConfig:
    """Train a network; a value left out comes from the method's recipe or from the data set."""

    method: str | None = None
    """A method (natural, pgd-at, trades, rslad, rslad-batchmean) or a preset (rslad-official,
    trades-official, madry)."""
    data: str | None = None
    """digits (bundled; the default), mnist, cifar10 or cifar100."""
    data_root: Path | None = None
    """Folder that holds the data set, as torchvision lays it out."""
    download: bool = False
    """Download the data set into data_root when it is not there."""
    student: str | None = None
    """Architecture of the student, such as resnet18, mobilenetv2, wrn-34-10 or small_cnn."""
    teacher: Path | None = None
    """Checkpoint of the teacher."""
    teacher_model: str | None = None
    """Architecture of a teacher checkpoint that does not name its own."""
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    schedule: Literal["multistep", "cosine", "constant"] | None = None
    milestones: tuple[int, ...] | None = None
    """Epochs after which the learning rate falls tenfold; they scale with epochs when left out."""
    weight_decay: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    eps: float | None = None
    """Radius of the attack, in training and validation."""
    alpha: float | None = None
    """Step size of the training attack; eps / 4 when left out."""
    steps: int | None = None
    """Steps of the training attack."""
    norm: str | None = None
    """Linf, L2 or L1."""
    options: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Further options of the method: NAME VALUE NAME VALUE ..."""
    mean: tuple[float, ...] | None = None
    """Per-channel mean that the student subtracts from its input."""
    std: tuple[float, ...] | None = None
    """Per-channel standard deviation that the student divides its input by."""
    train_n: int | None = None
    """Train on the first so many images only, to try things out."""
    val: int | None = None
    """Size of the held-out part of the training set on which the best epoch is chosen."""
    selection: Literal["held-out", "test-selected", "last"] | None = None
    """How best.safetensors is chosen; test-selected is for comparison with published code only."""
    val_steps: int | None = None
    """Steps of the PGD that validates."""
    val_alpha: float | None = None
    """Its step size; eps / 4 when left out."""
    eval_every: int | None = None
    """Validate every so many epochs, and after the last."""
    eval_from: int | None = None
    """Validate in every epoch from this one on."""
    seed: int | None = None
    """0 when left out."""
    out: Path | None = None
    """Folder of the run; runs/METHOD-DATA-STUDENT when left out."""
    resume: bool = False
    """Continue the run in --out after its last finished epoch."""
    device: str = "auto"
    precision: Literal["fp32", "tf32", "bf16"] | None = None
    """Of the training passes; left out: as torch is set. Validation always runs in fp32."""
    threads: int | None = None
    """CPU threads."""
    dry_run: bool = False
    """Set everything up, run one batch, write nothing."""


@dataclass(kw_only=True)
class Resolved(TrainConfig):
    """A config whose every value is known."""

    method: str
    data: str
    student: str
    epochs: int
    batch_size: int
    lr: float
    schedule: Literal["multistep", "cosine", "constant"]
    milestones: tuple[int, ...]
    weight_decay: float
    momentum: float
    nesterov: bool
    eps: float
    alpha: float
    steps: int
    norm: str
    val: int
    selection: Literal["held-out", "test-selected", "last"]
    val_steps: int
    val_alpha: float
    eval_every: int
    seed: int
    out: Path


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
    "mnist": DataDefaults(0.3, 1000, {**_SMALL, "epochs": 20, "lr": 0.05}),
    "digits": DataDefaults(0.15, 200, {**_SMALL, "epochs": 40, "lr": 0.05, "batch_size": 64}),
}

_FROM_RECIPE = (
    *("student", "epochs", "batch_size", "lr", "schedule", "weight_decay", "momentum"),
    *("nesterov", "val_steps", "val_alpha", "eval_every", "eval_from"),
)
# What may differ between the first and the resumed part of one run.
_FREE_ON_RESUME = {"resume", "out", "device", "threads", "download", "data_root", "dry_run"}


def resolve(config: TrainConfig) -> Resolved:
    """Returns the config with every value filled in; raises ValueError for one that cannot be."""
    if config.method is None:
        raise ValueError(f"method must be given, one of {', '.join(methods.presets())}.")
    preset = methods.preset(config.method)
    name = "digits" if config.data is None else config.data
    config = replace(config, data=name, seed=0 if config.seed is None else config.seed)
    data = DATA_DEFAULTS.get(name, _CIFAR)
    recipe = {"schedule": "multistep", **asdict(preset), **({} if preset.official else data.recipe)}
    if config.milestones:
        recipe["schedule"] = "multistep"
    values = {item.name: getattr(config, item.name) for item in fields(TrainConfig)}
    for name in _FROM_RECIPE:
        if values[name] is None:
            values[name] = recipe[name]
    values |= _attack(config, preset, data.eps)
    values |= _selection(config, preset, data.val)
    values["milestones"] = _milestones(values, recipe)
    values["val_alpha"] = _first(values["val_alpha"], values["eps"] / 4)
    values["device"] = str(resolve_device(config.device))
    if values["out"] is None:
        values["out"] = Path("runs") / f"{config.method}-{config.data}-{values['student']}"
    resolved = Resolved(**values)
    _check(resolved)
    return resolved


def to_dict(config: Resolved) -> dict[str, Any]:
    """The settings of the run as plain values, fit for YAML."""
    values = {k: v for k, v in asdict(config).items() if k not in ("resume", "dry_run")}
    for name, value in values.items():
        if isinstance(value, Path):
            values[name] = str(value)
        elif isinstance(value, tuple):
            values[name] = list(value)
    return values


def from_dict(values: dict[str, Any]) -> Resolved:
    """The config that `to_dict` wrote."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for name in ("data_root", "teacher", "out"):
        values[name] = None if values[name] is None else Path(values[name])
    return Resolved(**values)


def resumed(config: TrainConfig, saved: Resolved) -> Resolved:
    """The saved run's config, continued; raises ValueError where the request says otherwise."""
    default = TrainConfig()
    for item in fields(TrainConfig):
        asked, before = getattr(config, item.name), getattr(saved, item.name)
        if item.name in _FREE_ON_RESUME or asked == getattr(default, item.name):
            continue
        if item.name == "options":
            before = {name: before.get(name) for name in asked}
        if asked != before:
            raise ValueError(
                f"{item.name} must stay {before} in the resumed run {config.out}, but is {asked}."
            )
    free = {
        name: getattr(config, name)
        for name in _FREE_ON_RESUME
        if getattr(config, name) != getattr(default, name)
    }
    return replace(saved, **free)


def _milestones(values: dict[str, Any], recipe: dict[str, Any]) -> tuple[int, ...]:
    if values["milestones"] is not None or values["schedule"] != "multistep":
        return values["milestones"] or ()
    return tuple(round(m * values["epochs"] / recipe["epochs"]) for m in recipe["milestones"])


def _attack(config: TrainConfig, preset: Preset, data_eps: float) -> dict[str, Any]:
    options = {**preset.options_for(config.data), **config.options}
    METHODS[preset.method].plain_options(options)
    given = {name: options.pop(name, None) for name in ("eps", "alpha", "steps", "norm")}
    eps = _first(config.eps, given["eps"], data_eps)
    # A step size belongs to the radius that it came with.
    alpha = given["alpha"] if eps == given["eps"] else None
    return {
        "eps": eps,
        "alpha": _first(config.alpha, alpha, eps / 4),
        "steps": _first(config.steps, given["steps"], 10),
        "norm": _first(config.norm, given["norm"], "Linf"),
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


def _check(config: Resolved) -> None:
    for name in ("epochs", "batch_size", "steps", "val_steps", "eval_every", "threads", "train_n"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, but is {value}.")
    for name in ("lr", "weight_decay", "momentum", "eps", "alpha", "val", "val_alpha"):
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, but is {value}.")
    if config.schedule not in SCHEDULES:
        raise unknown("schedule", config.schedule, SCHEDULES)
    if config.selection not in SELECTIONS:
        raise unknown("selection", config.selection, SELECTIONS)
    parse_norm(config.norm)
    if (config.selection == "held-out") != (config.val > 0):
        raise ValueError(
            f"selection is {config.selection!r} with val={config.val}, but a held-out selection "
            "needs val above 0 and the others need val=0."
        )
    if (config.mean is None) != (config.std is None):
        raise ValueError("mean and std must be given together.")
