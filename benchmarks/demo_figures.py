"""The demo's pictures: training curves, and digits before and after an attack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

import fastard
from fastard.data import Images
from fastard.evaluation.suites import SUITES
from fastard.files import atomic_path
from fastard.train import TrainResult

# Told apart also by colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73")
RIGHT, WRONG = "#00734f", "#c23b00"
SEED = 0


def draw_curves(path: Path, runs: Mapping[str, TrainResult]) -> None:
    """Draws loss, held-out clean and held-out robust accuracy of every run over its epochs."""
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    panels = figure.subplots(1, 3)
    config = next(iter(runs.values())).config
    keys = ("loss", "val_clean", "val_robust")
    titles = (
        "training loss (each method's own)",
        f"clean accuracy, {config.val} held-out digits",
        f"PGD-{config.val_steps} accuracy, eps {config.eps:g}",
    )
    for axes, key, title in zip(panels, keys, titles, strict=True):
        for (name, run), colour in zip(runs.items(), COLOURS, strict=True):
            _curve(axes, run, key, name, colour)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(yscale="log", ylabel="loss")
    for axes in panels[1:]:
        axes.set(ylim=(0, 103), ylabel="accuracy in %")
    handles, labels = panels[0].get_legend_handles_labels()
    (dot,) = panels[0].plot([], [], "o", color="0.35")
    figure.legend(
        [*handles, dot], [*labels, "epoch kept"], loc="outside lower center", ncols=4, frameon=False
    )
    _write(figure, path)


def _curve(axes: Any, run: TrainResult, key: str, name: str, colour: str) -> None:
    scale = 1 if key == "loss" else 100
    points = [(row["epoch"], scale * row[key]) for row in run.metrics if key in row]
    axes.plot(*zip(*points, strict=True), color=colour, label=name, linewidth=1.8)
    axes.plot(run.best["epoch"], scale * run.best[key], "o", color=colour, markersize=7)


def draw_examples(
    path: Path, networks: Mapping[str, nn.Module], images: Images, eps: float
) -> None:
    """Draws the first test image of each class and what PGD-20 makes of it against each network.

    Titles say what the networks read: on a clean image all of them, in the columns' order.
    """
    attack = SUITES["basic"][1].at(eps)
    rows = torch.stack([(images.y == label).nonzero()[0, 0] for label in images.y.unique()])
    x, y = images.float(rows), images.y[rows]
    figure = Figure(figsize=(1.4 + 2.6 * len(networks), 1.2 * len(x) + 1.1), layout="constrained")
    figure.get_layout_engine().set(wspace=0.04, hspace=0.05)
    grid = figure.subplots(len(x), 1 + 2 * len(networks), squeeze=False)
    _pixels(grid[:, 0], x)
    with torch.no_grad():
        readings = torch.stack([model.eval()(x).argmax(1) for model in networks.values()], 1)
    for axes, label, read in zip(grid[:, 0], y.tolist(), readings.tolist(), strict=True):
        axes.set_title(f"a {label}, read {' and '.join(map(str, read))}", fontsize=10)
    heads = [(0, "clean")]
    shown = None
    for column, (name, model) in zip(range(1, grid.shape[1], 2), networks.items(), strict=True):
        x_adv = fastard.pgd_ce(
            model, x, y, eps, attack.alpha, attack.steps,
            generator=torch.Generator().manual_seed(SEED),
        )  # fmt: skip
        with torch.no_grad():
            read = model.eval()(x_adv).argmax(1)
        _pixels(grid[:, column], x_adv)
        for axes, guess, label in zip(grid[:, column], read.tolist(), y.tolist(), strict=True):
            mark, colour = ("✓", RIGHT) if guess == label else ("✗", WRONG)
            axes.set_title(f"reads {guess} {mark}", fontsize=10, color=colour, weight="bold")
        shown = _pixels(grid[:, column + 1], x_adv - x, cmap="coolwarm", vmin=-eps, vmax=eps)
        heads += [(column, f"adversarial,\n{name}"), (column + 1, "its\nperturbation")]
    for column, head in heads:
        grid[0, column].annotate(
            head, (0.5, 1.32), xycoords="axes fraction", ha="center", va="bottom", fontsize=11
        )
    bar = figure.colorbar(
        shown, ax=grid, location="bottom", fraction=0.012, pad=0.01, aspect=45,
        ticks=[-eps, 0, eps],
    )  # fmt: skip
    bar.set_label(f"perturbation: change of a pixel whose range is 0 to 1; PGD-20, eps {eps:g}")
    _write(figure, path)


def _pixels(cells: Any, x: Tensor, cmap: str = "gray", vmin: float = 0.0, vmax: float = 1.0) -> Any:
    for axes, image in zip(cells, x[:, 0].numpy(), strict=True):
        shown = axes.imshow(image, cmap=cmap, vmin=vmin, vmax=vmax, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
    return shown


def _write(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
