"""Training a student with a method: the loop, its validation, its files."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import fastard
from fastard import checks, data, methods, models
from fastard.device import DeviceTimer
from fastard.engine.precision import arithmetic
from fastard.engine.precision import resolve as resolve_precision
from fastard.methods.recipes import SELECTIONS
from fastard.methods.registry import METHODS
from fastard.models.checkpoint import require_fits
from fastard.progress import QUIET, Tally, progress_bar
from fastard.runs import RunFolder, intact
from fastard.schedules import learning_rate
from fastard.selection import Selection
from fastard.train_config import Resolved, TrainConfig, from_dict, resolve, resumed, to_dict

__all__ = ["TrainConfig", "TrainResult", "train"]

REFRESH_SECONDS = 0.5


@dataclass(frozen=True)
class TrainResult:
    """Where a run is and how it went: `metrics` has a row an epoch, `best` is one of them."""

    out: Path
    config: Resolved
    metrics: list[dict[str, Any]]
    best: dict[str, Any]


def train(config: TrainConfig, console: Console = QUIET) -> TrainResult | None:
    """Trains a student and writes the run's folder.

    The folder holds `config.yaml` (every setting, resolved), `metrics.jsonl` (a line an epoch),
    `last.safetensors`, `best.safetensors`, `state.pt` (for `resume`) and `curves.png`. The best
    epoch is that of the highest robust accuracy under PGD in fp32 (clean accuracy for natural
    training) on images held out of the training set, unless `config.selection` says otherwise.

    Seeds torch's global generator with `config.seed`. On the CPU, a resumed run ends with the same
    bits as one that was never interrupted.

    Args:
        config: the settings; what is None comes from the method's recipe or the data set.
        console: shows progress; silent by default.

    Returns: the result, or None for a dry run.
    Raises ValueError, FileNotFoundError, FileExistsError or PermissionError for settings that
        cannot work, before any training, and FloatingPointError when the loss is not finite.
    """
    settings, run = _open(config)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.dry_run:
        Trainer(settings, run, console).try_one_batch()
        return None
    with run.opened():
        trainer = Trainer(settings, run, console)
        try:
            trainer.fit()
        finally:
            if trainer.rows:
                trainer.draw_curves()
    return TrainResult(run.path, settings, trainer.rows, trainer.best_row)


def _open(config: TrainConfig) -> tuple[Resolved, RunFolder]:
    if not config.resume:
        resolved = resolve(config)
        run = RunFolder(resolved.out)
        run.refuse_existing()
        return resolved, run
    if config.out is None:
        raise ValueError("out must be given: the folder of the run to resume.")
    run = RunFolder(config.out)
    values = run.read_config()
    with intact(run.config):
        saved = from_dict(values)
    return resolve(resumed(config, saved)), run


class Trainer:
    """The state of a run and the steps that advance it."""

    def __init__(self, config: Resolved, run: RunFolder, console: Console):
        self.config, self.run, self.console = config, run, console
        self.device = torch.device(config.device)
        torch.manual_seed(config.seed)
        self.splits = self._load_data()
        self.student = self._student().to(self.device)
        self.method = methods.build(
            config.method, self.student, self._teachers(), **self._method_options()
        ).to(self.device)
        self.method.attack_timer = self.attack_timer = DeviceTimer(self.device)
        self.selection = Selection(config, self.splits, self.method.selects_on)
        self.optimizer = torch.optim.SGD(
            self.method.trainable_parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        self.order = torch.Generator().manual_seed(config.seed)
        self.epoch = 0
        self.rows: list[dict[str, Any]] = []
        self.best_row: dict[str, Any] = {}
        if config.resume:
            self._restore()

    def fit(self) -> None:
        """Trains from the next epoch to the last."""
        config = self.config
        if not config.resume:
            self.run.write_config(to_dict(config))
        self._announce()
        steps = self.splits.train.num_batches(config.batch_size)
        columns = (
            "loss {task.fields[loss]}",
            "robust {task.fields[robust]}",
            "{task.fields[rate]}",
        )
        with progress_bar(self.console, *columns) as progress:
            task = progress.add_task(
                "training",
                total=config.epochs * steps,
                completed=self.epoch * steps,
                loss="-",
                robust="-",
                rate="- images/s",
            )

            def show(step: int, means: dict[str, float], rate: float) -> None:
                progress.update(
                    task,
                    description=f"epoch {self.epoch + 1}/{config.epochs}",
                    completed=self.epoch * steps + step,
                    loss=f"{means['loss']:.4f}",
                    robust=_percent(means.get("robust_accuracy")),
                    rate=f"{rate:.0f} images/s",
                )

            while self.epoch < config.epochs:
                row = self._train_epoch(show)
                row |= self.selection.validate(self.student, row["epoch"])
                self._finish_epoch(row)
        if self.best_row:
            self.console.print(
                f"{self.selection.describe(self.best_row)}: {self.run.best}", soft_wrap=True
            )

    def draw_curves(self) -> None:
        """Draws the metrics so far into the run's folder."""
        config = self.config
        self.run.draw_curves(self.rows, f"{config.method} on {config.data}, {config.student}")

    def try_one_batch(self) -> None:
        """Runs the forward and backward of one batch and says what a run would do."""
        self._announce()
        images = self.splits.train
        batch = next(images.batches(self.config.batch_size, shuffle=True, generator=self.order))
        self.student.train()
        started = time.perf_counter()
        with self._arithmetic():
            loss, _ = self.method(*batch)
        loss.backward()
        self.console.print(
            f"dry run: loss {loss.item():.4f}, {time.perf_counter() - started:.2f} s for the first "
            f"of {images.num_batches(self.config.batch_size)} batches, nothing written",
            soft_wrap=True,
        )

    def _train_epoch(self, show: Any) -> dict[str, Any]:
        config, epoch = self.config, self.epoch + 1
        lr = learning_rate(config.schedule, config.lr, epoch, config.epochs, config.milestones)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.method.on_epoch(epoch, config.epochs)
        self.method.train()
        self.student.train()
        self.attack_timer.reset()
        tally = Tally(self.device)
        images = self.splits.train
        batches = images.batches(config.batch_size, shuffle=True, generator=self.order)
        started = shown = time.perf_counter()
        for step, batch in enumerate(batches, 1):
            with self._arithmetic():
                loss, logs = self.method(*batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            tally.add(logs, len(batch.x))
            if self.device.type == "cpu":
                # Reading waits for nothing here, and the next attack would refuse NaN logits.
                self._require_finite(tally, epoch)
            if (now := time.perf_counter()) - shown > REFRESH_SECONDS:
                shown = now
                show(step, self._means(tally, epoch), tally.samples / (now - started))
        means = self._means(tally, epoch)
        seconds = time.perf_counter() - started
        show(step, means, len(images) / seconds)
        return {
            "epoch": epoch,
            "lr": lr,
            **means,
            "images_per_s": round(len(images) / seconds, 1),
            "attack_share": round(self.attack_timer.reset() / seconds, 4),
            "seconds": round(seconds, 3),
            "selection": config.selection,
        }

    def _means(self, tally: Tally, epoch: int) -> dict[str, float]:
        self._require_finite(tally, epoch)
        return tally.means()

    def _require_finite(self, tally: Tally, epoch: int) -> None:
        if bad_step := int(tally.bad_step):
            kept = f"{self.run.last} holds epoch {self.epoch}" if self.epoch else "none was saved"
            raise FloatingPointError(
                f"the loss is not finite at step {bad_step} of epoch {epoch}; training stopped, "
                f"of the checkpoints {kept}."
            )

    def _finish_epoch(self, row: dict[str, Any]) -> None:
        self.epoch = row["epoch"]
        row["best"] = self.selection.is_best(row, self.best_row)
        self.rows.append(row)
        if row["best"]:
            self.best_row = row
            self._save(self.run.best, row)
        self._save(self.run.last, row)
        self.run.write_metrics(self.rows)
        # Last, so that a state never claims an epoch whose other files are missing.
        self.run.write_state(self._state())
        accuracies = "".join(
            f"  {key.replace('_', ' ')} {_percent(row[key])}"
            for key in row
            if key.startswith(("val_", "test_"))
        )
        label = " (test-selected)" if self.config.selection == "test-selected" else ""
        self.console.print(
            f"epoch {row['epoch']:>3}  lr {row['lr']:.4g}  loss {row['loss']:.4f}{accuracies}"
            f"  {row['images_per_s']:.0f} images/s{f'  best{label}' if row['best'] else ''}",
            highlight=False,
            soft_wrap=True,
        )

    def _save(self, path: Path, row: dict[str, Any]) -> None:
        config, best = self.config, path == self.run.best
        selected = self.selection.describe(self.best_row) if best else f"last: epoch {row['epoch']}"
        models.save(
            path,
            self.student,
            name=config.student,
            num_classes=self.splits.num_classes,
            in_channels=self.splits.in_channels,
            image_size=self.splits.image_size,
            extra={
                "method": config.method,
                "data": config.data,
                "eps": config.eps,
                "norm": config.norm,
                "selection": config.selection if best else "last",
                "selected": selected,
                "metrics": row,
                "fastard": fastard.__version__,
            },
        )

    def _state(self) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        return {
            "epoch": self.epoch,
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.get_state(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if cuda else None,
            "best_epoch": self.best_row.get("epoch"),
        }

    def _restore(self) -> None:
        state = self.run.read_state()
        if state is None:
            return
        with intact(self.run.state):
            self.epoch, best_epoch = state["epoch"], state["best_epoch"]
            self.student.load_state_dict(state["student"])
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.order.set_state(state["order"])
            torch.set_rng_state(state["rng"])
            if state["cuda_rng"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        rows = self.run.read_metrics()
        with intact(self.run.metrics):
            self.rows = [row for row in rows if row["epoch"] <= self.epoch]
            if [row["epoch"] for row in self.rows] != list(range(1, self.epoch + 1)):
                raise ValueError(f"it lacks some of the {self.epoch} finished epochs")
        self.best_row = next((r for r in self.rows if r["epoch"] == best_epoch), {})

    def _load_data(self) -> data.Splits:
        config = self.config
        splits = data.load(
            config.data,
            config.data_root,
            download=config.download,
            device=self.device,
            val=config.val,
        )
        if config.train_n is None:
            return splits
        return replace(splits, train=splits.train.first(config.train_n))

    def _student(self) -> nn.Module:
        config, splits = self.config, self.splits
        student = models.build(
            config.student,
            splits.num_classes,
            in_channels=splits.in_channels,
            image_size=splits.image_size,
        )
        if config.mean is None or config.std is None:
            return student
        for name in ("mean", "std"):
            checks.channel_values(getattr(config, name), splits.in_channels, name)
        return models.Normalized(student, config.mean, config.std)

    def _teachers(self) -> list[nn.Module]:
        config = self.config
        least = METHODS[methods.preset(config.method).method].least_teachers
        if config.teacher is None and least:
            raise ValueError(
                f"teacher (--teacher) must be given for method {config.method!r}: the checkpoint "
                "of the network to learn from."
            )
        if config.teacher is None:
            return []
        if not Path(config.teacher).is_file():
            raise FileNotFoundError(
                f"teacher (--teacher) must be a checkpoint file, but there is none at "
                f"{config.teacher}."
            )
        teacher, meta = models.load_checkpoint(config.teacher, name=config.teacher_model)
        require_fits(meta, self.splits, source=f"the teacher {config.teacher}")
        return [teacher.to(self.device)]

    def _method_options(self) -> dict[str, Any]:
        config = self.config
        attack = {name: getattr(config, name) for name in ("eps", "alpha", "steps", "norm")}
        known = METHODS[methods.preset(config.method).method].option_names()
        attack["precision"] = config.precision
        return {name: value for name, value in attack.items() if name in known} | config.options

    def _arithmetic(self) -> contextlib.AbstractContextManager[None]:
        if self.config.precision is None:
            return contextlib.nullcontext()
        precision = resolve_precision(self.config.precision, self.device.type)
        return arithmetic(precision, self.student, self.device.type)

    def _announce(self) -> None:
        config = self.config
        self.console.print(
            f"{config.method} on {config.data} ({len(self.splits.train)} training images, "
            f"{config.val} held out), {config.student} on {config.device}: epochs {self.epoch + 1} "
            f"to {config.epochs}, eps {config.eps:.5g} {config.norm}, alpha {config.alpha:.5g}, "
            f"{config.steps} steps; best.safetensors: {SELECTIONS[config.selection]}",
            soft_wrap=True,
        )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}%"
