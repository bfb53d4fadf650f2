"""``fastard teachers select``: the teachers whose adversarial examples carry over least."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import tyro
from rich.console import Console
from rich.table import Table
from torch import nn

from fastard import data, models
from fastard.device import resolve_device
from fastard.files import require_writable_dir, write_json
from fastard.kinds import parse_norm
from fastard.models.checkpoint import require_fits
from fastard.progress import progress_bar
from fastard.radius import trained_radius
from fastard.transfer import (
    Transfer,
    combinations,
    least_transferable,
    mean_within,
    transferability,
)


@dataclass(kw_only=True)
class TeachersConfig:
    """Choose teachers for darht: those whose adversarial examples carry over least."""

    action: tyro.conf.Positional[Literal["select"]]
    """select: measure every pair, choose a set."""
    teacher: tyro.conf.UseAppendAction[tuple[str, ...]] = field(default_factory=tuple)
    """A checkpoint, or ARCHITECTURE=CHECKPOINT for one that does not name its own; once for each
    candidate."""
    k: int = 2
    """How many to choose."""
    data: str = "cifar10"
    """digits, mnist, cifar10, cifar100, svhn, tiny-imagenet or imagenet; its training images are
    used, never the test set."""
    data_root: Path | None = None
    """Folder that holds the data set, as torchvision lays it out."""
    download: bool = False
    """Download the data set into data_root when it is not there."""
    n: int = 1000
    """Only the first N training images, in the data set's order."""
    eps: float | None = None
    """Radius; the teachers' own where they have one, else 8/255, when left out."""
    alpha: float | None = None
    """Step size; eps / 4 when left out."""
    steps: int = 10
    norm: str = "Linf"
    batch_size: int = 256
    seed: int = 0
    device: str = "auto"
    out: Path = Path("teachers.json")
    """JSON file to write."""


def select_teachers(config: TeachersConfig, console: Console | None = None) -> dict[str, Any]:
    """Measures the transferability between candidates, chooses a set, prints and writes both.

    Returns what the JSON file holds.
    Raises ValueError for fewer than two candidates, a k, n or attack out of range or a network that
        does not fit the data, FileNotFoundError for a checkpoint that is not there.
    """
    console = console or Console()
    _check(config)
    device = resolve_device(config.device)
    splits = data.load(config.data, config.data_root, download=config.download, device=device)
    if not 1 <= config.n <= len(splits.train):
        raise ValueError(
            f"n must lie between 1 and {len(splits.train)}, the images there, but is {config.n}."
        )
    # Without synthetic images among them, the training images can be picked one by one.
    images = cast(data.ImageSet, splits.train)
    networks, architectures, trained = [], [], []
    for text in config.teacher:
        network, meta = _load(text)
        require_fits(meta, splits, source=f"the teacher {text}")
        networks.append(network.to(device))
        architectures.append(meta["architecture"])
        trained.append(meta["extra"])
    eps = trained_radius(trained, config.norm) if config.eps is None else config.eps
    config = replace(config, eps=eps, alpha=eps / 4 if config.alpha is None else config.alpha)
    require_writable_dir(config.out.parent)
    with progress_bar(console) as progress:
        task = progress.add_task("attacking", total=config.n)
        found = transferability(
            networks,
            images.first(config.n),
            eps=eps,
            alpha=config.alpha,
            steps=config.steps,
            norm=config.norm,
            batch_size=config.batch_size,
            seed=config.seed,
            on_batch=lambda done: progress.update(task, completed=done),
        )
    chosen, mean = least_transferable(found.matrix, config.k)
    result = _result(config, architectures, found, chosen, mean)
    write_json(config.out, result)
    console.print(_table(config, found, chosen))
    names = ", ".join(config.teacher[at] for at in chosen)
    console.print(f"chosen: {names} (mean {100 * mean:.2f}%)", soft_wrap=True)
    console.print(f"written to {config.out}", soft_wrap=True)
    return result


def _check(config: TeachersConfig) -> None:
    count = len(config.teacher)
    if count < 2:
        raise ValueError(f"teacher (--teacher) must be given twice at least, but is {count} times.")
    if not 2 <= config.k <= count:
        raise ValueError(f"k must be from 2 to {count}, the teachers given, but is {config.k}.")
    for name in ("steps", "batch_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, but is {getattr(config, name)}.")
    for name in ("eps", "alpha"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, but is {value}.")
    parse_norm(config.norm)
    if config.out.is_dir():
        raise IsADirectoryError(
            f"out (--out) must be a file to write, but {config.out} is a folder."
        )


def _load(text: str) -> tuple[nn.Module, dict[str, Any]]:
    name, separator, path = text.partition("=")
    if separator and not Path(text).exists():
        return models.load_checkpoint(path, name=name)
    return models.load_checkpoint(text)


def _result(
    config: TeachersConfig,
    architectures: list[str],
    found: Transfer,
    chosen: tuple[int, ...],
    mean: float,
) -> dict[str, Any]:
    sets = [
        {"teachers": list(members), "mean": _number(mean_within(found.matrix, members))}
        for members in combinations(len(architectures), config.k)
    ]
    return {
        "teachers": list(config.teacher),
        "architectures": architectures,
        "data": config.data,
        "split": "train",
        "n": config.n,
        "eps": config.eps,
        "alpha": config.alpha,
        "steps": config.steps,
        "norm": config.norm,
        "seed": config.seed,
        "clean_accuracy": found.clean.tolist(),
        "robust_accuracy": found.robust.tolist(),
        "transferability": [[_number(value) for value in row] for row in found.matrix.tolist()],
        "counted": found.counted.tolist(),
        "sets": sets,
        "chosen": list(chosen),
        "chosen_teachers": [config.teacher[at] for at in chosen],
        "mean": mean,
    }


def _number(value: float) -> float | None:
    # JSON has no word for NaN.
    return None if math.isnan(value) else value


def _table(config: TeachersConfig, found: Transfer, chosen: tuple[int, ...]) -> Table:
    shown = Table(
        title=f"share of adversarial examples that carry over, in %: {config.n} training images of "
        f"{config.data}, PGD-{config.steps}, eps={config.eps:.5g} {config.norm}",
        caption="row: attacked, column: asked; * chosen",
    )
    for column in ("", "teacher", "clean", "robust", *map(str, range(len(config.teacher)))):
        shown.add_column(column, justify="left" if column == "teacher" else "right")
    for at, row in enumerate(found.matrix.tolist()):
        cells = ["-" if math.isnan(value) else f"{100 * value:.2f}" for value in row]
        accuracies = [f"{100 * float(share[at]):.2f}" for share in (found.clean, found.robust)]
        mark = "*" if at in chosen else ""
        shown.add_row(f"{mark}{at}", config.teacher[at], *accuracies, *cells)
    return shown
