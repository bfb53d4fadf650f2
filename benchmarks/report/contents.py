"""The report's sections, in order, of one run."""

from __future__ import annotations

from ..record_file import Run
from . import about
from .breakdown import breakdown, with_parts
from .compared import comparison
from .contests import section
from .document import Document
from .scaling import scaling

FASTER = "A rival's figure is how many times as long it takes as fastard, at equal precision."


def document(run: Run) -> Document:
    sections = [
        about.environment(run),
        about.targets(run),
        section(run, "attack", "Whole attacks", [FASTER]),
        section(run, "op", "Kernels", [
            FASTER, "The share of copy_ is how near the kernel comes to the rate at which the "
            "machine copies as many bytes."]),
        with_parts(section(run, "step", "Training steps", [FASTER]), run),
        section(run, "autoattack", "AutoAttack", [FASTER]),
        section(run, "memory", "Peak memory", [
            "A rival's figure is how many times as much memory it holds as fastard at its peak."]),
        scaling(run),
        breakdown(run),
        comparison(run),
        about.rivals(run),
        about.method(run),
    ]  # fmt: skip
    return Document("What fastard measures", about.lead(run), sections)
