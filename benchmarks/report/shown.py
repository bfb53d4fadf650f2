"""How figures are written, by kind: with their units, to about three digits."""

from __future__ import annotations

from collections.abc import Callable


def _digits(value: float, digits: int = 3) -> str:
    """At least that many significant digits, no exponent: 1920, 18.4, 0.0101."""
    if value == 0:
        return "0"
    power = int(f"{value:.{digits - 1}e}".split("e")[1])
    return f"{value:.{max(0, digits - 1 - power)}f}"


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    """In the largest unit that leaves a figure of at least 1, else in the smallest."""
    for size, unit in units:
        if abs(value) >= size:
            return f"{_digits(value / size)} {unit}"
    size, unit = units[-1]
    return f"{_digits(value / size)} {unit}"


_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SIZE = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
SHOWN: dict[str, Callable[[float], str]] = {
    "plain": lambda v: str(v) if isinstance(v, int) else _digits(v),
    "seconds": lambda v: _scaled(v, _TIME),
    "bytes": lambda v: _scaled(v, _SIZE),
    "times": lambda v: f"{v:.2f}×",
    "share": lambda v: f"{100 * v:.1f} %",
    "rate": lambda v: f"{_digits(v / 1e9)} GB/s",
    "work": lambda v: f"{_digits(v / 1e9)} GFLOP/s",
    "exponent": lambda v: f"{v:.2f}",
    "size": lambda v: f"{v:g}",
    "error": lambda v: f"{v:.2g}",
    # A missed target must not look like a reached one for its rounding.
    "figure": lambda v: _digits(v, 4),
}
