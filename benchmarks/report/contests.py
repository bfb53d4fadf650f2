"""Groups of cases that several contestants run: a table beside each other, and every line of it."""

from __future__ import annotations

from collections.abc import Iterable

from ..record import OURS, Result
from ..record_file import Run
from .cases import BOUNDS, STATES, cases, ours, ratio, shaky
from .contest_pictures import pictures
from .document import Cell, Section, Table, number, without_empty_columns


def section(run: Run, group: str, title: str, text: list[str]) -> Section:
    """A group's section: the pivot, a picture of it, and all lines folded."""
    found = [result for result in run.results if result.group == group]
    tables = [pivot(group, title, found), lines(group, title, found)]
    return Section(group, title, text, tables, list(pictures(run, group, found)))


def pivot(group: str, title: str, results: list[Result]) -> Table:
    """A row a case: fastard's figure, and how many times as much each rival takes."""
    rivals = [name for name in dict.fromkeys(result.who for result in results)
              if name != OURS and name not in BOUNDS]  # fmt: skip
    memory = group == "memory"
    columns = ["case", OURS, "over the floor", "share of copy_", *rivals, "floor", "bytes moved",
               "precision", "device", "remarks"]  # fmt: skip
    rows: list[list[Cell]] = []
    for (case, precision, device), found in cases(results).items():
        own = ours(found)
        rows.append([
            case, _own(own, memory),
            number(own.over_floor if own else None, "times"),
            number(own.share_of_copy if own else None, "share"),
            *(_rival([r for r in found if r.who == name], memory) for name in rivals),
            number(own.floor_seconds if own else None, "seconds"),
            number(own.bytes_per_second if own else None, "rate"),
            precision, device, "; ".join(_remarks(found)),
        ])  # fmt: skip
    told = f"{title}: fastard, and how many times as much a rival takes"
    return without_empty_columns(Table(group, told, columns, rows))


def _own(own: Result | None, memory: bool) -> Cell:
    if own is None:
        return "not in the record"
    if own.status != "measured":
        return STATES[own.status]
    if memory:
        return number(own.peak_bytes, "bytes")
    return number(own.seconds.min if own.seconds else None, "seconds")


def _rival(variants: list[Result], memory: bool) -> Cell:
    """The best of a rival's variants; what became of it where none was measured."""
    ratios = [found for found in map(ratio, variants) if found is not None]
    if ratios:
        return number(min(ratios), "times")
    states = dict.fromkeys(STATES[r.status] for r in variants if r.status != "measured")
    if states or not variants:
        return ", ".join(states)
    # Nothing to compare with: its own figure.
    best = min(variants, key=lambda r: r.seconds.min if r.seconds else float("inf"))
    return _own(best, memory)


def _remarks(found: list[Result]) -> Iterable[str]:
    for result in found:
        if result.who == OURS and result.reason:
            yield result.reason
    for why, who in shaky(found).items():
        yield f"not stable: {who}: {why}"


def lines(group: str, title: str, results: list[Result]) -> Table:
    """Every line of the record, a row each."""
    columns = [
        "case", "who", "variant", "version", "device", "model", "norm", "loss", "precision",
        "batch", "steps", "state", "fastest", "median", "spread", "rounds", "fastard is faster",
        "over the floor", "peak memory", "over fastard's memory", "bytes moved", "operations",
        "agreement", "found", "allowed", "remark",
    ]  # fmt: skip
    rows = [_line(result) for result in results]
    table = Table(f"{group}-lines", f"{title}: every line of the record", columns, rows, True)
    return without_empty_columns(table)


def _line(result: Result) -> list[Cell]:
    took, agreed = result.seconds, result.agreement
    return [
        result.case, result.who, result.variant, result.version, result.device, result.model,
        result.norm, result.loss, result.precision, number(result.batch), number(result.steps),
        STATES.get(result.status, result.status),
        number(took.min if took else None, "seconds"),
        number(took.median if took else None, "seconds"),
        number(took.spread if took else None, "share"),
        number(took.rounds if took else None),
        number(result.ratio, "times"),
        number(result.over_floor, "times"),
        number(result.peak_bytes, "bytes"),
        number(result.memory_ratio, "times"),
        number(result.bytes_per_second, "rate"),
        number(result.flops_per_second, "work"),
        agreed.what.rstrip(",") if agreed else None,
        number(agreed.value if agreed else None, "error"),
        number(agreed.allowed if agreed else None, "error"),
        "; ".join(filter(None, (result.reason, result.unstable))),
    ]  # fmt: skip
