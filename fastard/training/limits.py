"""What the settings of a run may be: one sentence for each that cannot."""

from __future__ import annotations

import math
from typing import get_args

from fastard import checks
from fastard.kinds import parse_norm, unknown
from fastard.methods.recipes import SELECTIONS
from fastard.training.config import Average, Parallel, Resolved, Sgd
from fastard.training.schedules import SCHEDULES

LR_GAMMA = 0.1
_COUNTS = (
    *("epochs", "batch_size", "steps", "val_steps", "eval_every", "threads", "train_n"),
    *("average_start", "patience", "save_every_steps"),
)
_SIZES = (
    *("lr", "weight_decay", "momentum", "eps", "alpha", "val", "val_alpha", "lr_gamma"),
    *("awp_gamma", "awp_warmup", "save_every_minutes"),
)


def require_valid(config: Resolved) -> None:
    """Raises ValueError naming the first setting that cannot be, or would change nothing.

    Raises FileNotFoundError for a cache's folder that is not there.
    """
    for name in _COUNTS:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, but is {value}.")
    for name in _SIZES:
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, but is {value}.")
    checks.seed(config.seed)
    if config.teacher_cache is not None and not 0 < config.teacher_cache < math.inf:
        raise ValueError(
            f"teacher_cache must be above 0 GiB and finite, but is {config.teacher_cache}."
        )
    _require_words(config)
    _require_shares(config)
    _require_effect(config)
    parse_norm(config.norm)
    if (config.selection == "held-out") != (config.val > 0):
        raise ValueError(
            f"selection is {config.selection!r} with val={config.val}, but a held-out selection "
            "needs val above 0 and the others need val=0."
        )
    if config.patience is not None and config.selection == "last":
        raise ValueError("patience needs a validation, but selection is 'last'.")
    if (config.mean is None) != (config.std is None):
        raise ValueError("mean and std must be given together.")
    if config.average == "swa" and config.average_start > config.epochs:
        raise ValueError(
            f"average_start must be at most the {config.epochs} epochs, but is "
            f"{config.average_start}."
        )
    nominal = config.options.get("nominal_batch")
    if nominal not in (None, config.batch_size):
        raise ValueError(
            f"option nominal_batch must be the batch_size, {config.batch_size}, but is {nominal}."
        )
    if config.precision == "fp16" and config.awp_gamma > 0:
        raise ValueError(
            "awp_gamma must be 0 in fp16, whose scaled gradients may overflow, but is "
            f"{config.awp_gamma}; bf16 works."
        )
    if config.parallel == "fsdp" and config.awp_gamma > 0:
        raise ValueError(
            "awp_gamma must be 0 with parallel fsdp, under which no process has the whole gradient "
            f"of a weight, but is {config.awp_gamma}; ddp works."
        )
    if config.parallel == "fsdp" and config.compile:
        raise ValueError(
            "compile must be off with parallel fsdp, whose all-gathers would break the graph at "
            "every block; ddp works."
        )


def _require_words(config: Resolved) -> None:
    known = {
        "schedule": SCHEDULES,
        "selection": SELECTIONS,
        "average": get_args(Average),
        "sgd": get_args(Sgd),
        "parallel": get_args(Parallel),
        "precision": (None, "fp32", "tf32", "bf16", "fp16"),
    }
    for name, words in known.items():
        if getattr(config, name) not in words:
            raise unknown(name, getattr(config, name), [word for word in words if word])


def _require_shares(config: Resolved) -> None:
    if config.peak is not None and not 0 < config.peak < 1:
        raise ValueError(f"peak must lie between 0 and 1, but is {config.peak}.")
    if config.ema_decay is not None and not 0 <= config.ema_decay < 1:
        raise ValueError(f"ema_decay must be at least 0 and below 1, but is {config.ema_decay}.")
    if config.clip_grad is not None and not 0 < config.clip_grad < math.inf:
        raise ValueError(f"clip_grad must be above 0 and finite, but is {config.clip_grad}.")


def _require_effect(config: Resolved) -> None:
    """Raises ValueError for a setting that would change nothing without another one."""
    falls = config.schedule == "multistep"
    needs = (
        ("teacher_cache", "teacher", config.teacher_cache is not None, config.teacher),
        (
            "teacher_cache_folder",
            "teacher_cache",
            config.teacher_cache_folder is not None,
            config.teacher_cache is not None,
        ),
        ("teacher_model", "teacher", config.teacher_model, config.teacher),
        ("original_share", "extra", config.original_share is not None, config.extra is not None),
        ("milestones", "schedule multistep", config.milestones, falls),
        ("ema_decay", "average ema", config.ema_decay is not None, config.average == "ema"),
        ("average_start", "average", config.average_start > 1, config.average != "none"),
        ("awp_warmup", "awp_gamma", config.awp_warmup, config.awp_gamma),
        ("lr_gamma", "schedule multistep", config.lr_gamma != LR_GAMMA, falls),
        (
            "peak",
            "schedule onecycle or cyclic",
            config.peak is not None,
            config.schedule in ("onecycle", "cyclic"),
        ),
    )
    for name, other, given, there in needs:
        if given and not there:
            raise ValueError(f"{name} needs {other}, but is {getattr(config, name)} without it.")
    if config.milestones and min(config.milestones) > config.epochs:
        raise ValueError(
            f"milestones must lie within the {config.epochs} epochs, but are "
            f"{', '.join(map(str, config.milestones))}: the learning rate would never fall."
        )
    folder = config.teacher_cache_folder
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(
            f"teacher_cache_folder (--teacher-cache-folder) must be a folder, but there is none at "
            f"{folder}."
        )
