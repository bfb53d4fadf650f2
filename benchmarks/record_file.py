"""Result files: lines appended as they come, and read back with every field checked."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastard.kinds import unknown

from .record import (
    GROUPS,
    KINDS,
    OURS,
    SCHEMA,
    STATUSES,
    Comparison,
    End,
    Environment,
    Line,
    Result,
    Target,
)

CHOICES = {"group": GROUPS, "status": STATUSES, "at": ("least", "most")}


@dataclass
class Run:
    """A result file as read."""

    path: Path
    environment: Environment
    results: list[Result] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    end: End | None = None

    @property
    def complete(self) -> bool:
        return self.end is not None

    def ours(self, case: str, precision: str | None = None) -> Result | None:
        """fastard's line of a case, of a precision where that is given."""
        for result in self.results:
            if result.case == case and result.who == OURS and precision in (None, result.precision):
                return result
        return None


def to_json(line: Line) -> str:
    """One line; NaN and infinities, for which JSON has no word, become null."""
    plain = _finite(dataclasses.asdict(line))
    kind = plain.pop("kind")
    return json.dumps({"kind": kind, **plain}, ensure_ascii=False, allow_nan=False)


class Writer:
    """Appends lines, each on the disk before the next is measured."""

    def __init__(self, path: Path, environment: Environment) -> None:
        self.path = path
        path.write_text(to_json(environment) + "\n", encoding="utf-8")

    def put(self, line: Line) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(line) + "\n")


def read(path: Path) -> Run:
    """The file's lines, checked; half a last line, which a kill leaves, is left out.

    Raises:
        ValueError: another schema, no environment, a field that is missing, unknown or of another
            type, or a file that is no JSON Lines.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: not a result file.") from error
    return parse(text, path)


def parse(text: str, path: Path) -> Run:
    """`read` of a text; `path` names it in errors."""
    lines = text.splitlines()
    if lines and not text.endswith("\n"):
        lines = lines[:-1]
    run: Run | None = None
    for number, raw in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            found = json.loads(raw)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is no JSON ({error.msg}): not a result file.") from error
        if not isinstance(found, dict) or "kind" not in found:
            raise ValueError(f"{where} bears no 'kind': not a result file of fastard bench.")
        if number == 1:
            _schema(found, where)
        line = make(found, where)
        if number == 1:
            if not isinstance(line, Environment):
                raise ValueError(f"{where} is a {found['kind']}, but must be the environment.")
            run = Run(path, line)
        elif isinstance(line, Result) and run:
            run.results.append(line)
        elif isinstance(line, Target) and run:
            run.targets.append(line)
        elif isinstance(line, Comparison) and run:
            run.comparisons.append(line)
        elif isinstance(line, End) and run:
            run.end = line
        else:
            raise ValueError(f"{where} is a second environment: one file holds one run.")
    if run is None:
        raise ValueError(f"{path} is empty: not a result file of fastard bench.")
    return run


def _schema(found: dict[str, Any], where: str) -> None:
    if found["kind"] == "environment" and found.get("schema") != SCHEMA:
        raise ValueError(
            f"{where}: the result file has schema {found.get('schema')!r}, but this version of "
            f"fastard reads schema {SCHEMA}: read it with the version that wrote it."
        )


def make(found: dict[str, Any], where: str) -> Line:
    """A line from its JSON object.

    Raises ValueError, with `where`, for what is missing, unknown or of another type.
    """
    if str(found["kind"]) not in KINDS:
        raise ValueError(f"{where}: {unknown('kind of line', str(found['kind']), KINDS)}")
    made = _made(KINDS[found["kind"]], found, where, found["kind"])
    for name, known in CHOICES.items():
        if name in found and found[name] not in known:
            raise ValueError(f"{where}: {unknown(name, found[name], known)}")
    return made


def _made(cls: Any, found: dict[str, Any], where: str, what: str) -> Any:
    known = {f.name: f for f in dataclasses.fields(cls)}
    missing = [
        name for name, f in known.items()
        if name not in found
        and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise ValueError(f"{where}: the {what} lacks {', '.join(missing)}.")
    if extra := found.keys() - known.keys():
        raise ValueError(f"{where}: the {what} has unknown fields: {', '.join(sorted(extra))}.")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in found.items():
        inner = _dataclass_in(hints[name])
        if inner is not None and isinstance(value, dict):
            values[name] = _made(inner, value, where, f"{what}'s {name}")
            continue
        if not _fits(value, hints[name]):
            wanted = known[name].type
            raise ValueError(f"{where}: the {what}'s {name} must be {wanted}, but is {value!r}.")
        values[name] = value
    return cls(**values)


def _dataclass_in(hint: Any) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((o for o in options if dataclasses.is_dataclass(o)), None)


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(_fits(v, inner[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(v, inner[1]) for v in value.values())
    if hint in (int, float):
        numbers = (int, float) if hint is float else (int,)
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, hint)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
