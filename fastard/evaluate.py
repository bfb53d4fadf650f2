"""Evaluating a network under a suite of attacks."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from fastard import checks, data, models
from fastard.data import ImageSet
from fastard.device import resolve_device
from fastard.files import require_writable_dir, write_json
from fastard.kinds import parse_norm, unknown
from fastard.models.checkpoint import require_fits
from fastard.progress import QUIET, progress_bar
from fastard.scores import weighted_robust_accuracy
from fastard.suites import REFERENCE_EPS, SUITES, Verdicts, judge


@dataclass(kw_only=True)
class EvaluateConfig:
    """Measure the accuracy of a checkpoint on clean and attacked test images."""

    checkpoint: Path
    """Checkpoint of `fastard train`, or any .safetensors, .pt or .pth file."""
    model: str | None = None
    """Architecture of a checkpoint that does not name its own, such as resnet18."""
    data: str | None = None
    """digits, mnist, cifar10 or cifar100; the checkpoint's own when left out."""
    data_root: Path | None = None
    """Folder that holds the data set, as torchvision lays it out."""
    download: bool = False
    """Download the data set into data_root when it is not there."""
    suite: str = "basic"
    """basic: FGSM, PGD-20 at 2/255 and at 0.003, CW with 30 steps; steps follow eps / (8/255)."""
    n: int | None = None
    """Only the first N test images, in the data set's order."""
    out: Path | None = None
    """JSON file to write; CHECKPOINT.SUITE.json beside the checkpoint when left out."""
    eps: float | None = None
    """Radius of the attacks; the checkpoint's own, else 8/255, when left out."""
    norm: str | None = None
    """Linf, L2 or L1; the checkpoint's own, else Linf, when left out."""
    device: str = "auto"
    batch_size: int = 256
    seed: int = 0
    precision: str = "fp32"
    """Of the search for adversarial images; the verdicts are always fp32."""


def evaluate(
    model: nn.Module,
    images: ImageSet,
    *,
    eps: float = REFERENCE_EPS,
    norm: str = "Linf",
    suite: str = "basic",
    n: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    precision: str = "fp32",
    console: Console = QUIET,
) -> dict[str, Any]:
    """Attacks a model with every attack of a suite and counts the survivors.

    Each verdict is the argmax of the model itself, in fp32 and eval mode, at the attack's last
    iterate; "worst" counts the samples that are right when clean and survive every attack. NaN and
    +inf logits count as broken and are reported. Step sizes are the suite's at eps = 8/255 and
    follow eps in proportion.

    Args:
        model: takes images in [0, 1]; its modes and statistics stay as they are.
        images: the images and labels, on the model's device.
        eps: radius of the attacks. norm: "Linf", "L2" or "L1".
        suite: name of the suite.
        n: only the first n images.
        seed: of the random starts; with equal batch size, runs repeat.
        precision: of the search; the verdicts are always fp32.
        console: shows progress; silent by default.

    Returns: a dict that JSON can hold: `accuracy` by attack in [0, 1], `weighted_robust_accuracy`
        (the mean of clean and worst), per-sample `verdicts` by attack (1 survived, 0 broken),
        `broken_logits` (counts), `seconds`, and the protocol.

    Raises ValueError for an unknown suite, n out of range, a negative or infinite eps, or logits
        of another shape; TypeError for a model that does not return one tensor.
    """
    if suite not in SUITES:
        raise unknown("suite", suite, SUITES)
    parse_norm(norm)
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be at least 0 and finite, but is {eps}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, but is {batch_size}.")
    checks.seed(seed)
    if n is not None and not 1 <= n <= len(images):
        raise ValueError(f"n must lie between 1 and {len(images)}, the images there, but is {n}.")
    images = images.first(n) if n is not None else images
    attacks = [None, *(attack.at(eps) for attack in SUITES[suite])]
    results: dict[str, Verdicts] = {}
    seconds: dict[str, float] = {}
    skip = None
    with progress_bar(console, "accuracy {task.fields[accuracy]}") as progress:
        for attack in attacks:
            key, title = ("clean", "clean") if attack is None else (attack.key, attack.title)
            task = progress.add_task(f"{title:<16}", total=len(images), accuracy="  -   ")

            def show(done: int, survivors: int, task: Any = task) -> None:
                shown = f"{100 * survivors / done:5.2f}%"
                progress.update(task, completed=done, accuracy=shown)

            started = time.perf_counter()
            results[key] = judge(
                model,
                images,
                attack,
                eps=eps,
                norm=norm,
                batch_size=batch_size,
                seed=seed,
                precision=precision,
                skip=skip,
                on_batch=show,
            )
            seconds[key] = round(time.perf_counter() - started, 3)
            skip = results["clean"].broken_logits
    survived = {key: verdicts.survived for key, verdicts in results.items()}
    survived["worst"] = torch.stack(list(survived.values())).all(0)
    accuracy = {key: int(mask.sum()) / len(images) for key, mask in survived.items()}
    return {
        "suite": suite,
        "n": len(images),
        "eps": eps,
        "norm": norm,
        "precision": precision,
        "seed": seed,
        "batch_size": batch_size,
        "attacks": {attack.key: attack.describe() for attack in attacks if attack is not None},
        "accuracy": accuracy,
        "weighted_robust_accuracy": weighted_robust_accuracy(accuracy["clean"], accuracy["worst"]),
        "broken_logits": {key: int(v.broken_logits.sum()) for key, v in results.items()},
        "seconds": seconds,
        "torch": torch.__version__,
        "verdicts": {key: mask.int().tolist() for key, mask in survived.items()},
    }


def evaluate_checkpoint(config: EvaluateConfig, console: Console | None = None) -> dict[str, Any]:
    """Loads a checkpoint and its data, evaluates, prints the table and writes the JSON."""
    console = console or Console()
    out = config.out or config.checkpoint.with_suffix(f".{config.suite}.json")
    if out.is_dir():
        raise IsADirectoryError(f"out (--out) must be a file to write, but {out} is a folder.")
    model, meta = models.load_checkpoint(config.checkpoint, name=config.model)
    about = meta["extra"]
    name = config.data or about.get("data")
    if name is None:
        raise ValueError(
            f"data must be given: {config.checkpoint} does not say what it was trained on."
        )
    device = resolve_device(config.device)
    splits = data.load(name, config.data_root, download=config.download, device=device)
    require_fits(meta, splits, source=str(config.checkpoint))
    require_writable_dir(out.parent)
    result = evaluate(
        model.to(device),
        splits.test,
        eps=config.eps if config.eps is not None else about.get("eps", REFERENCE_EPS),
        norm=config.norm or about.get("norm", "Linf"),
        suite=config.suite,
        n=config.n,
        batch_size=config.batch_size,
        seed=config.seed,
        precision=config.precision,
        console=console,
    )
    result = {
        "checkpoint": str(config.checkpoint),
        "selection": about.get("selected", "selection unknown"),
        "architecture": meta["architecture"],
        "data": name,
        **result,
    }
    write_json(out, result)
    console.print(table(result))
    weighted = 100 * result["weighted_robust_accuracy"]
    console.print(f"weighted robust accuracy (mean of clean and worst): {weighted:.2f}%")
    console.print(protocol(result), soft_wrap=True)
    console.print(f"written to {out}", soft_wrap=True)
    return result


def table(result: dict[str, Any]) -> Table:
    """The accuracies of a result, one column an attack."""
    attacks = [attack.at(result["eps"]) for attack in SUITES[result["suite"]]]
    titles = {attack.key: attack.title for attack in attacks}
    shown = Table(title=f"accuracy in % on {result['data']}, {result['architecture']}")
    for key in result["accuracy"]:
        shown.add_column(titles.get(key, key), justify="right")
    shown.add_row(*(f"{100 * value:.2f}" for value in result["accuracy"].values()))
    return shown


def protocol(result: dict[str, Any]) -> str:
    """One line that says what was measured and how."""
    line = (
        f"N={result['n']} (first in data set order), eps={result['eps']:.5g} {result['norm']}, "
        f"{result['precision']} search, fp32 verdicts; {'; '.join(result['attacks'].values())}; "
        f"checkpoint {result['checkpoint']} ({result['selection']})"
    )
    broken = {key: count for key, count in result["broken_logits"].items() if count}
    if broken:
        counts = ", ".join(f"{count} under {key}" for key, count in broken.items())
        line += f"; NaN or +inf logits counted as broken: {counts}"
    return line
