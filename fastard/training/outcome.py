"""What a run leaves behind: its metrics, checkpoints, pictures and the lines it prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torchvision.utils import save_image

import fastard
from fastard.data import Splits
from fastard.engine.precision import Precision
from fastard.methods.recipes import SELECTIONS
from fastard.progress import percent
from fastard.training import figures, summary
from fastard.training.config import Resolved
from fastard.training.config_file import to_dict
from fastard.training.examples import example_grid
from fastard.training.folder import RunFolder, intact
from fastard.training.selection import Selection


class Outcome:
    """The finished epochs of a run: `rows`, one each, and `best_row`, one of them or empty."""

    def __init__(
        self,
        run: RunFolder,
        config: Resolved,
        splits: Splits,
        selection: Selection,
    ):
        self.run, self.config, self.splits = run, config, splits
        self.selection = selection
        self.rows: list[dict[str, Any]] = []
        self.best_row: dict[str, Any] = {}

    def restore(self, epoch: int, best_epoch: int | None) -> None:
        """Reads the metrics of the finished epochs; raises ValueError where one is missing."""
        rows = self.run.read_metrics()
        with intact(self.run.metrics):
            self.rows = [row for row in rows if row["epoch"] <= epoch]
            if [row["epoch"] for row in self.rows] != list(range(1, epoch + 1)):
                raise ValueError(f"it lacks some of the {epoch} finished epochs")
        self.best_row = next((r for r in self.rows if r["epoch"] == best_epoch), {})

    def finish_epoch(self, row: dict[str, Any], network: nn.Module) -> str:
        """Writes the epoch's checkpoints and metrics; returns the line to print."""
        row["best"] = self.selection.is_best(row, self.best_row)
        self.rows.append(row)
        if row["best"]:
            self.best_row = row
            self._save(network, row, best=True)
        self._save(network, row, best=False)
        self.run.write_metrics(self.rows)
        accuracies = "".join(
            f"  {key.replace('_', ' ')} {percent(row[key])}"
            for key in row
            if key.startswith(("val_", "test_"))
        )
        label = " (test-selected)" if self.config.selection == "test-selected" else ""
        return (
            f"epoch {row['epoch']:>3}  lr {row['lr']:.4g}  loss {row['loss']:.4f}{accuracies}"
            f"  {row['images_per_s']:.0f} images/s{f'  best{label}' if row['best'] else ''}"
        )

    def patience_is_over(self) -> bool:
        """Whether the last `patience` validations all failed to beat the best one."""
        patience, best = self.config.patience, self.best_row.get("epoch", 0)
        if patience is None:
            return False
        key = f"{self.selection.split}_robust"
        return sum(key in row for row in self.rows if row["epoch"] > best) >= patience

    def draw(self, network: nn.Module | None) -> None:
        """Writes the pictures and the summary of the epochs so far; nothing before the first.

        Args:
            network: what is attacked for the picture of examples; None leaves that as it is.
        """
        if not self.rows:
            return
        config = self.config
        if network is not None:
            with self.run.writing(self.run.examples) as temporary:
                # Small images are enlarged, so that their pixels show.
                grid = example_grid(network, self.splits, config)
                factor = max(1, 512 // grid.shape[-1])
                whole = grid.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
                save_image(whole, temporary)
        title = f"{config.method} on {config.data}, {config.student}"
        with self.run.writing(self.run.curves) as temporary:
            figures.draw_curves(temporary, self.rows, title, self.best_row)
        gap = figures.overfitting(self.rows, self.best_row)
        page = summary.page(
            title=title,
            settings=to_dict(config),
            rows=self.rows,
            best=self.selection.describe(self.best_row) if self.best_row else "no best epoch yet",
            gap=figures.describe(gap) if gap else "",
            pictures={
                "curves": self.run.curves,
                "clean images, attacked images, difference": self.run.examples,
            },
        )
        with self.run.writing(self.run.summary) as temporary:
            temporary.write_text(page, encoding="utf-8")

    def announcement(self, epoch: int, step: int, precision: Precision | None) -> Iterator[str]:
        """What is about to be trained, and where it runs otherwise than asked."""
        config = self.config
        begin = f"{epoch + 1}, after step {step}," if step else str(epoch + 1)
        epochs = f"epochs {begin} to {config.epochs}"
        if epoch >= config.epochs:
            epochs = f"all {config.epochs} epochs are trained already"
        yield (
            f"{config.method} on {config.data} ({len(self.splits.train)} training images, "
            f"{config.val} held out), {config.student} on {config.device}: {epochs}, "
            f"eps {config.eps:.5g} {config.norm}, alpha {config.alpha:.5g}, "
            f"{config.steps} steps; best.safetensors: {SELECTIONS[config.selection]}"
        )
        never = [str(epoch) for epoch in config.milestones if epoch > config.epochs]
        if never:
            yield (
                f"milestones {', '.join(never)} come after the last of {config.epochs} epochs: the "
                "learning rate does not fall there"
            )
        if precision is not None and precision.name != config.precision:
            yield f"precision {config.precision} runs as {precision.name}: {precision.reason}"

    def ending(self, epoch: int, step: int, reason: str | None, finished: bool) -> Iterator[str]:
        """How the run ended."""
        if reason and not finished:
            where = f"step {step} of epoch {epoch + 1}" if step else f"epoch {epoch}"
            yield f"stopped by {reason} after {where}; --resume continues from there"
        elif epoch < self.config.epochs:
            yield f"stopped after epoch {epoch}: none better in {self.config.patience} validations"
        if self.best_row:
            yield f"{self.selection.describe(self.best_row)}: {self.run.best}"

    def _save(self, network: nn.Module, row: dict[str, Any], *, best: bool) -> None:
        config = self.config
        selected = self.selection.describe(self.best_row) if best else f"last: epoch {row['epoch']}"
        self.run.write_weights(
            self.run.best if best else self.run.last,
            network,
            name=config.student,
            num_classes=self.splits.num_classes,
            in_channels=self.splits.in_channels,
            image_size=self.splits.image_size,
            extra={
                "method": config.method,
                "data": config.data,
                "eps": config.eps,
                "norm": config.norm,
                "average": config.average,
                "selection": config.selection if best else "last",
                "selected": selected,
                "metrics": row,
                "fastard": fastard.__version__,
            },
        )
