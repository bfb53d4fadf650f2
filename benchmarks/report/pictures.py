"""The kinds of picture: who takes how long beside fastard, growth along a size, parts of a whole.

All are narrow with words above their marks, so that they can be read on a phone.
"""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from .palette import Palette

WIDTH = 4.6
MARKERS = "oDs^vP*X"


def marker(k: int) -> str:
    """Where the colours begin anew, the marks are shifted."""
    return MARKERS[(k + k // len(MARKERS)) % len(MARKERS)]


@dataclass(frozen=True)
class Curve:
    """Seconds along one size, with the words of the legend and the fitted exponent."""

    label: str
    x: list[float]
    seconds: list[float]
    exponent: float


def beside(
    palette: Palette, rows: dict[str, dict[str, float]], names: list[str], axis: str
) -> Figure:
    """A row a case, a mark a contestant, on one logarithmic axis.

    `names` gives every contestant its mark, so that it bears the same one in all pictures.
    """
    figure, axes = _axes(palette, 1.1 + 0.42 * len(rows))
    for place, (label, row) in enumerate(rows.items()):
        axes.axhline(-place, color=palette.grid, linewidth=0.8, zorder=0)
        _above(axes, palette, 0.22 - place, label)
        for name, value in row.items():
            k = names.index(name)
            axes.plot([value], [-place], marker(k), color=palette.colour(k))
    for k, name in enumerate(names):
        if any(name in row for row in rows.values()):
            axes.plot([], [], marker(k), color=palette.colour(k), label=name)
    axes.axvline(1, color=palette.grid, linewidth=0.8, zorder=0)
    axes.set_ylim(-len(rows) + 0.4, 0.7)
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines["left"].set_visible(False)
    axes.set_xscale("log")
    _plain_ticks(axes.xaxis, [value for row in rows.values() for value in row.values()])
    axes.set_xlabel(axis, color=palette.ink)
    _legend(figure, axes, palette)
    return figure


def growth(palette: Palette, curves: list[Curve], over: str) -> Figure:
    """Points on logarithmic axes, each curve with the line of its fitted exponent."""
    figure, axes = _axes(palette, 3.4)
    for k, curve in enumerate(curves):
        axes.plot(curve.x, curve.seconds, marker(k), color=palette.colour(k),
                  label=curve.label)  # fmt: skip
        axes.plot(curve.x, fitted(curve), color=palette.colour(k), linewidth=1)
    axes.set(xscale="log", yscale="log")
    axes.grid(color=palette.grid, linewidth=0.6)
    axes.xaxis.set_major_locator(FixedLocator(sorted({x for curve in curves for x in curve.x})))
    _written_plainly(axes.xaxis)
    _plain_ticks(axes.yaxis, [value for curve in curves for value in curve.seconds])
    axes.set_xlabel(over, color=palette.ink)
    axes.set_ylabel("seconds", color=palette.ink)
    _legend(figure, axes, palette, columns=1)
    return figure


def fitted(curve: Curve) -> list[float]:
    """The curve's own exponent through the middle of its points, on logarithmic axes."""
    ratios = [y / x**curve.exponent for x, y in zip(curve.x, curve.seconds, strict=True)]
    middle = 1.0
    for ratio in ratios:
        middle *= ratio ** (1 / len(ratios))
    return [middle * x**curve.exponent for x in curve.x]


def parts(palette: Palette, bars: dict[str, dict[str, float]]) -> Figure:
    """A bar a case, cut into its parts, each a share of the bar."""
    figure, axes = _axes(palette, 1.2 + 0.6 * len(bars))
    names = list(dict.fromkeys(name for bar in bars.values() for name in bar))
    for place, (label, bar) in enumerate(bars.items()):
        begun, whole = 0.0, sum(bar.values()) or 1.0
        for name, seconds in bar.items():
            colour = palette.colour(names.index(name))
            axes.barh(-place, seconds / whole, left=begun, height=0.4, color=colour)
            begun += seconds / whole
        _above(axes, palette, 0.28 - place, label)
    for k, name in enumerate(names):
        axes.bar(0, 0, color=palette.colour(k), label=name)
    axes.set(xlim=(0, 1), ylim=(-len(bars) + 0.6, 0.6))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("share of the attack", color=palette.ink)
    _legend(figure, axes, palette)
    return figure


def _axes(palette: Palette, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(which="both", colors=palette.ink)
    for spine in axes.spines.values():
        spine.set_edgecolor(palette.ink)
    return figure, axes


def _plain_ticks(axis: Axis, values: list[float]) -> None:
    """Ticks without exponents, about five of them, on a logarithmic axis that shows the values."""
    span = max(values) / min(values)
    if span < 4:
        axis.set_major_locator(MaxNLocator(5))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 30 else (1,)))
    _written_plainly(axis)


def _written_plainly(axis: Axis) -> None:
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _above(axes: Axes, palette: Palette, height: float, label: str) -> None:
    words, place = _short(label), axes.get_yaxis_transform()
    axes.text(0, height, words, transform=place, color=palette.ink, fontsize=8.5)


def _short(words: str, most: int = 60) -> str:
    """What fits the width; the tables have it whole."""
    words = " ".join(words.split())
    return words if len(words) <= most else f"{words[: most - 1]}…"


def _legend(figure: Figure, axes: Axes, palette: Palette, columns: int = 2) -> None:
    handles, labels = axes.get_legend_handles_labels()
    labels = [_short(label, 60 // columns) for label in labels]
    figure.legend(handles, labels, loc="outside lower left", ncols=columns,
                  frameon=False, fontsize=8.5, labelcolor=palette.ink)  # fmt: skip
