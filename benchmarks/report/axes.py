"""What the pictures share: one width, which a phone can show, plain ticks, legends below."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from .palette import Palette

WIDTH = 4.6
MARKERS = "oDs^vP*X"


def marker(k: int) -> str:
    """Where the colours begin anew, the marks are shifted."""
    return MARKERS[(k + k // len(MARKERS)) % len(MARKERS)]


def drawing(palette: Palette, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(which="both", colors=palette.ink)
    for spine in axes.spines.values():
        spine.set_edgecolor(palette.ink)
    return figure, axes


def plain_ticks(axis: Axis, values: list[float]) -> None:
    """Ticks without exponents, about five of them, on a logarithmic axis that shows the values."""
    span = max(values) / min(values)
    if span < 4:
        axis.set_major_locator(MaxNLocator(5))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 30 else (1,)))
    written_plainly(axis)


def written_plainly(axis: Axis) -> None:
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def above(axes: Axes, palette: Palette, height: float, label: str) -> None:
    words, place = _short(label), axes.get_yaxis_transform()
    axes.text(0, height, words, transform=place, color=palette.ink, fontsize=8.5)


def _short(words: str, most: int = 60) -> str:
    """What fits the width; the tables have it whole."""
    words = " ".join(words.split())
    return words if len(words) <= most else f"{words[: most - 1]}…"


def legend(figure: Figure, axes: Axes, palette: Palette, columns: int = 2) -> None:
    handles, labels = axes.get_legend_handles_labels()
    labels = [_short(label, 60 // columns) for label in labels]
    figure.legend(handles, labels, loc="outside lower left", ncols=columns,
                  frameon=False, fontsize=8.5, labelcolor=palette.ink)  # fmt: skip
