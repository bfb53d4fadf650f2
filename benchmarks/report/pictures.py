"""Who takes how long beside fastard, and the parts of a whole, a row each under its name."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from .axes import above, drawing, legend, marker, plain_ticks
from .palette import Palette


def beside(
    palette: Palette, rows: dict[str, dict[str, float]], names: list[str], axis: str
) -> Figure:
    """A row a case, a mark a contestant, on one logarithmic axis.

    `names` gives every contestant its mark, so that it bears the same one in all pictures.
    """
    figure, axes = drawing(palette, 1.1 + 0.42 * len(rows))
    for place, (label, row) in enumerate(rows.items()):
        axes.axhline(-place, color=palette.grid, linewidth=0.8, zorder=0)
        above(axes, palette, 0.22 - place, label)
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
    plain_ticks(axes.xaxis, [value for row in rows.values() for value in row.values()])
    axes.set_xlabel(axis, color=palette.ink)
    legend(figure, axes, palette)
    return figure


def parts(palette: Palette, bars: dict[str, dict[str, float]]) -> Figure:
    """A bar a case, cut into its parts, each a share of the bar."""
    figure, axes = drawing(palette, 1.2 + 0.6 * len(bars))
    names = list(dict.fromkeys(name for bar in bars.values() for name in bar))
    for place, (label, bar) in enumerate(bars.items()):
        begun, whole = 0.0, sum(bar.values()) or 1.0
        for name, seconds in bar.items():
            colour = palette.colour(names.index(name))
            axes.barh(-place, seconds / whole, left=begun, height=0.4, color=colour)
            begun += seconds / whole
        above(axes, palette, 0.28 - place, label)
    for k, name in enumerate(names):
        axes.bar(0, 0, color=palette.colour(k), label=name)
    axes.set(xlim=(0, 1), ylim=(-len(bars) + 0.6, 0.6))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("share of the whole", color=palette.ink)
    legend(figure, axes, palette)
    return figure
