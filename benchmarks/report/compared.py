"""The comparison with an earlier result, where the run made one."""

from __future__ import annotations

from ..record import Comparison
from ..record_file import Run
from .document import Cell, Number, Section, Table


def comparison(run: Run) -> Section:
    rows = [_row(found) for found in run.comparisons]
    columns = ["case", "verdict", "now over before", "before", "now", "noise", "who", "precision",
               "earlier result", "machine"]  # fmt: skip
    table = Table("comparison", "Now and before", columns, rows)
    text = ["A case is slower where it takes longer than before by more than the noise. On another "
            "machine the change is that of fastard's time as a share of its rivals', since seconds "
            "say nothing there."]  # fmt: skip
    if not rows:
        text = []
    missing = "This run was compared with no earlier result."
    return Section("comparison", "Compared with an earlier result", text, [table], missing=missing)


def _row(found: Comparison) -> list[Cell]:
    return [
        found.case, "slower" if found.slower else "not slower", Number(found.change, "times"),
        Number(found.before, "seconds"), Number(found.now, "seconds"),
        Number(found.noise, "share"), found.who, found.precision,
        found.baseline, "the same" if found.same_machine else "another",
    ]  # fmt: skip
