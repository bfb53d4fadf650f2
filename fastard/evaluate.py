"""`fastard evaluate`: a checkpoint under a suite of attacks."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from fastard import data, models
from fastard.device import resolve_device
from fastard.evaluation.attacks import Setting
from fastard.evaluation.diagnose import diagnose, told
from fastard.evaluation.journal import Journal, images_digest
from fastard.evaluation.page import page
from fastard.evaluation.results import markdown, protocol, table
from fastard.evaluation.run import Evaluation, evaluate
from fastard.evaluation.second_opinion import require_referee, second_opinion
from fastard.evaluation.subject import Subject, beside
from fastard.files import atomic_path, require_writable_dir, write_json
from fastard.models.checkpoint import require_fits
from fastard.progress import QUIET
from fastard.radius import trained_radius
from fastard.training.ranks import Ranks

# A process that has no block left waits for one whose AutoAttack takes days.
LONGEST_WAIT = timedelta(days=7)

__all__ = ["EvaluateConfig", "evaluate", "evaluate_checkpoint"]


@dataclass(kw_only=True)
class EvaluateConfig:
    """Measure the accuracy of a checkpoint on clean and attacked test images."""

    checkpoint: Path
    """Checkpoint of `fastard train`, any .safetensors, .pt or .pth file, or a network from
    elsewhere as `fastard train --teacher` takes it: timm:NAME, torchvision:NAME, robustbench:NAME,
    NAME@FILE (with --data)."""
    model: str | None = None
    """Architecture of a checkpoint that does not name its own, such as resnet18."""
    data: str | None = None
    """digits, mnist, cifar10, cifar100, svhn, tiny-imagenet or imagenet; the checkpoint's own when
    left out."""
    data_root: Path | None = None
    """Folder that holds the data set, as torchvision lays it out."""
    download: bool = False
    """Download the data set into data_root when it is not there."""
    suite: str = "basic"
    """basic (FGSM, PGD-20 at 2/255 and at 0.003, CW with 30 steps), rslad (these and AutoAttack),
    adaad, igdm, autoattack, transfer, square-only or weighted; steps follow eps / (8/255)."""
    n: int | None = None
    """Only the first N test images, in the data set's order."""
    out: Path | None = None
    """JSON file to write, a .md and a .html beside it; CHECKPOINT.SUITE.json beside the checkpoint
    when left out. Until it is whole, what is done lies beside it, and the same command goes on."""
    eps: float | None = None
    """Radius of the attacks; the checkpoint's own, else 8/255, when left out. Another norm than
    the checkpoint's, or than Linf, needs one."""
    norm: str | None = None
    """Linf, L2 or L1; the checkpoint's own, else Linf, when left out."""
    device: str = "auto"
    batch_size: int = 256
    """Images a block; what a block found is kept when the run is killed."""
    seed: int = 0
    precision: str = "fp32"
    """Of the search for adversarial images; the verdicts are always fp32."""
    surrogate: Path | None = None
    """Checkpoint that the suite transfer makes its images on."""
    surrogate_model: str | None = None
    """Architecture of a surrogate that does not name its own."""
    workers: int = 1
    """Processes that share the images; torchrun's own are taken as they are."""
    diagnose: bool = False
    """Look for signs that gradients mislead the attacks, on the first images, before all else."""
    referee: str | None = None
    """official: when the suite is done, ask the installed official AutoAttack about the first
    images and print on how many the verdicts agree."""
    referee_n: int = 200
    """Images that the referee is asked about."""


def evaluate_checkpoint(config: EvaluateConfig, console: Console | None = None) -> dict[str, Any]:
    """Loads a checkpoint and its data, evaluates, prints the table and writes JSON, .md and .html.

    What is found is kept after every block: killed, the same call goes on where it was. With
    `workers` processes, or under torchrun, blocks are shared and the result is one process's.
    """
    console = console or Console()
    out = config.out or beside(config.checkpoint, f".{config.suite}.json")
    if out.is_dir():
        raise IsADirectoryError(f"out (--out) must be a file to write, but {out} is a folder.")
    if config.workers < 1:
        raise ValueError(f"workers (--workers) must be at least 1, but is {config.workers}.")
    if config.referee is not None:
        require_referee(config.referee, config.suite, config.referee_n)
    if config.workers > 1 and "RANK" not in os.environ:
        return _shared(config, out, console)
    ranks = Ranks(timeout=LONGEST_WAIT)
    console = console if ranks.first else QUIET
    subject = Subject.of(config.checkpoint, config.model)
    trained = subject.trained
    name = config.data or trained.get("data")
    if name is None:
        raise ValueError(
            f"data must be given: {config.checkpoint} does not say what it was trained on."
        )
    device = resolve_device(ranks.device(config.device))
    splits = data.load(name, config.data_root, download=config.download, device=device)
    if subject.meta is not None:
        require_fits(subject.meta, splits, source=str(config.checkpoint))
    model = subject.load(splits)
    surrogate, surrogate_meta = _surrogate(config, splits)
    require_writable_dir(out.parent)
    norm = config.norm or trained.get("norm", "Linf")
    setting = Setting(
        model.to(device),
        config.eps if config.eps is not None else trained_radius([trained], norm),
        norm,
        config.seed,
        config.precision,
        None if surrogate is None else surrogate.to(device),
    )
    run = Evaluation(
        setting, splits.test, config.suite, config.n, config.batch_size, rank=ranks.rank,
        world=ranks.world,
    )  # fmt: skip
    settings = {
        "suite": config.suite, "data": name, "n": len(run.images), "eps": setting.eps,
        "norm": setting.norm, "seed": setting.seed, "precision": setting.precision,
    }  # fmt: skip
    if ranks.first:
        _require_own(out, settings)
    about = settings | {
        **_digests(config, subject),
        # As asked for: a journal that was begun without it goes on without it.
        "n": config.n,
        "model": subject.architecture,
        "surrogate_model": surrogate_meta.get("architecture"),
        "images": images_digest(run.images),
    }
    run.journal = journal = Journal(out, about, ranks.rank)
    found = told(diagnose(setting, run.images)) if config.diagnose and ranks.first else []
    for sentence in found:
        console.print(sentence, soft_wrap=True, highlight=False)
    if journal.blocks:
        verdicts = sum(len(block["ids"]) for block in journal.blocks)
        console.print(f"going on after {verdicts} verdicts that were there")
    run.go(console)
    ranks.wait()
    if not ranks.first:
        return {}
    journal.again()
    result = {
        "checkpoint": str(config.checkpoint),
        "selection": trained.get("selected", "selection unknown"),
        "architecture": subject.architecture,
        "data": name,
        "surrogate": None if config.surrogate is None else str(config.surrogate),
        "diagnosis": found,
        **run.result(),
    }
    if config.referee is not None:
        asked = min(config.referee_n, result["n"])
        console.print(f"asking the official AutoAttack about the first {asked} images")
        result["referee"] = second_opinion(setting, run.images, result, config.referee_n)
    _write(out, result, [shown for block in journal.blocks for shown in block["examples"]])
    journal.remove()
    console.print(table(result))
    weighted = 100 * result["weighted_robust_accuracy"]
    console.print(f"weighted robust accuracy (mean of clean and worst): {weighted:.2f}%")
    for opinion in result.get("referee", {}).values():
        console.print(opinion["told"], soft_wrap=True, highlight=False)
    console.print(protocol(result), soft_wrap=True)
    console.print(f"written to {out}, {out.with_suffix('.md').name} and "
                  f"{out.with_suffix('.html').name}", soft_wrap=True)  # fmt: skip
    return result


def _require_own(out: Path, settings: dict[str, Any]) -> None:
    """Refuses a file that holds something else than an evaluation with these settings."""
    if not out.exists():
        return
    try:
        found = json.loads(out.read_text(encoding="utf-8"))
        differing = [key for key, value in settings.items() if found[key] != value]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"out (--out) must be a new file or an earlier evaluation, but {out} is neither."
        ) from None
    if differing:
        raise ValueError(
            f"{out} holds an evaluation with another {', '.join(differing)}: give another file "
            "(--out), or delete that one."
        )


def _write(out: Path, result: dict[str, Any], examples: list[dict[str, Any]]) -> None:
    texts = {".md": markdown(result), ".html": page(result, examples)}
    for suffix, text in texts.items():
        with atomic_path(out.with_suffix(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_json(out, result)


def _surrogate(
    config: EvaluateConfig, splits: data.Splits
) -> tuple[nn.Module | None, dict[str, Any]]:
    if config.surrogate is None:
        return None, {}
    surrogate, meta = models.load_checkpoint(config.surrogate, name=config.surrogate_model)
    require_fits(meta, splits, source=str(config.surrogate))
    return surrogate, meta


def _digests(config: EvaluateConfig, subject: Subject) -> dict[str, str | None]:
    """What tells the networks' weights from others."""
    surrogate = None
    if config.surrogate is not None:
        surrogate = hashlib.sha256(config.surrogate.read_bytes()).hexdigest()
    return {"checkpoint": subject.digest(), "surrogate": surrogate}


def _shared(config: EvaluateConfig, out: Path, console: Console) -> dict[str, Any]:
    """The same command in several processes; rank 0 of them writes the files."""
    given = []
    for field in fields(config):
        value = getattr(config, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(value, bool):
            given += [flag] if value else []
        elif value is not None and field.name != "workers":
            given += [flag, str(value)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", str(config.workers), "-m", "fastard", "--", "evaluate"]
    ended = subprocess.run(
        [*launch, *given],
        stdout=subprocess.DEVNULL if console.quiet else None,
        stderr=subprocess.PIPE if console.quiet else None,
    )
    if ended.returncode:
        raise ChildProcessError(
            f"the {config.workers} processes ended with status {ended.returncode}; what they found "
            "is kept, and the same command goes on."
        )
    result: dict[str, Any] = json.loads(out.read_text())
    return result
