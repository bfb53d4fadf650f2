"""Growth along a size, on logarithmic axes."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from .axes import drawing, legend, marker, plain_ticks, written_plainly
from .palette import Palette


@dataclass(frozen=True)
class Curve:
    """Seconds along one size, with the words of the legend and the fitted exponent."""

    label: str
    x: list[float]
    seconds: list[float]
    exponent: float


def growth(palette: Palette, curves: list[Curve], over: str) -> Figure:
    """Points on logarithmic axes, each curve with the line of its fitted exponent."""
    figure, axes = drawing(palette, 3.4)
    for k, curve in enumerate(curves):
        axes.plot(curve.x, curve.seconds, marker(k), color=palette.colour(k),
                  label=curve.label)  # fmt: skip
        axes.plot(curve.x, fitted(curve), color=palette.colour(k), linewidth=1)
    axes.set(xscale="log", yscale="log")
    axes.grid(color=palette.grid, linewidth=0.6)
    axes.xaxis.set_major_locator(FixedLocator(sorted({x for curve in curves for x in curve.x})))
    written_plainly(axes.xaxis)
    plain_ticks(axes.yaxis, [value for curve in curves for value in curve.seconds])
    axes.set_xlabel(over, color=palette.ink)
    axes.set_ylabel("seconds", color=palette.ink)
    legend(figure, axes, palette, columns=1)
    return figure


def fitted(curve: Curve) -> list[float]:
    """The curve's own exponent through the middle of its points, on logarithmic axes."""
    ratios = [y / x**curve.exponent for x, y in zip(curve.x, curve.seconds, strict=True)]
    middle = 1.0
    for ratio in ratios:
        middle *= ratio ** (1 / len(ratios))
    return [middle * x**curve.exponent for x in curve.x]
