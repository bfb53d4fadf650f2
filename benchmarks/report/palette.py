"""Colours of the pictures: fixed ones for PNG, the page's own for SVG."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """The colours of text and axes, of the grid, and of each series in turn."""

    ink: str
    grid: str
    series: tuple[str, ...]

    def colour(self, index: int) -> str:
        return self.series[index % len(self.series)]


# Okabe and Ito's, which colour-blind readers can tell apart.
PRINTED = Palette(
    "#222222", "#cccccc",
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c6d31"),
)  # fmt: skip

# Colours that no picture uses; `themed` turns them into the page's variables.
MARKED = Palette("#010203", "#010204", tuple(f"#01030{k}" for k in range(len(PRINTED.series))))


def themed(svg: str) -> str:
    """An SVG drawn in MARKED, in the colours that the page gives it."""
    svg = svg.replace(MARKED.ink, "currentColor").replace(MARKED.grid, "var(--grid)")
    return re.sub(r"#01030(\d)", r"var(--series-\1)", svg)
