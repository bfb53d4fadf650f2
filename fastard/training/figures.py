"""The pictures of a run: curves over its epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def draw_curves(path: Path, rows: list[dict[str, Any]], title: str, best: dict[str, Any]) -> None:
    """Draws loss, accuracies and learning rate over the epochs as PNG.

    The robust accuracy of the best and of the last epoch are marked, and how far the last one fell
    behind: robust overfitting.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss_axes, accuracy_axes, rate_axes = figure.subplots(1, 3)
    _curve(loss_axes, rows, "loss", "training loss")
    _curve(rate_axes, rows, "lr", "learning rate")
    for split in ("val", "test"):
        for kind in ("clean", "robust"):
            _curve(accuracy_axes, rows, f"{split}_{kind}", f"{kind}, {split}")
    for kind in ("clean", "robust"):
        label = f"{kind}, training batches"
        _curve(accuracy_axes, rows, f"{kind}_accuracy", label, linestyle=":")
    for axes, label in ((loss_axes, "loss"), (accuracy_axes, "accuracy"), (rate_axes, "lr")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    accuracy_axes.set_ylim(0, 1)
    if gap := overfitting(rows, best):
        accuracy_axes.plot([best["epoch"]], [gap["best"]], "k*")
        accuracy_axes.plot([rows[-1]["epoch"]], [gap["last"]], "k.")
        accuracy_axes.set_title(describe(gap), fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120, format="png")


def overfitting(rows: list[dict[str, Any]], best: dict[str, Any]) -> dict[str, Any]:
    """The robust accuracy of the best and the last epoch; empty where one was not validated."""
    for split in ("val", "test"):
        key = f"{split}_robust"
        if rows and best and key in best and key in rows[-1]:
            return {
                "split": split,
                "best": best[key],
                "best_epoch": best["epoch"],
                "last": rows[-1][key],
                "gap": best[key] - rows[-1][key],
            }
    return {}


def describe(gap: dict[str, Any]) -> str:
    """One line on robust overfitting."""
    return (
        f"robust, {gap['split']}: best {100 * gap['best']:.1f} % (epoch {gap['best_epoch']}), "
        f"last {100 * gap['last']:.1f} %, gap {100 * gap['gap']:.1f}"
    )


def _curve(axes: Any, rows: list[dict[str, Any]], key: str, label: str, **style: Any) -> None:
    points = [(row["epoch"], row[key]) for row in rows if key in row]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)
