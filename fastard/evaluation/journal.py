"""What an evaluation has found so far, on disk block by block."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

VERSION = 1


class Journal:
    """Verdicts as lines of JSON beside the result's file; a process writes its own, all are read.

    A line is complete or it does not count: a process that is killed loses the block it was at.

    Args:
        out: the result's file; the journal's names end in .part-RANK.jsonl beside it.
        about: what the verdicts depend on; another journal's verdicts are not taken.
        rank: this process's.

    Raises ValueError where a journal is there that belongs to another evaluation.
    """

    def __init__(self, out: Path, about: Mapping[str, Any], rank: int = 0) -> None:
        self.about = {"evaluation": VERSION, **about}
        self._pattern = f".{out.name}.part-*.jsonl"
        self._folder, self._own = out.parent, out.parent / f".{out.name}.part-{rank}.jsonl"
        self.blocks = self._read()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(self._pattern))

    def _read(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for path in self._files():
            head, *lines = _complete(path) or [self.about]
            differing = [key for key in self.about if head.get(key) != self.about[key]]
            if differing:
                raise ValueError(
                    f"{path} holds an unfinished evaluation with another "
                    f"{', '.join(differing)}: finish that one, or delete the file."
                )
            found += lines
        return found

    def again(self) -> list[dict[str, Any]]:
        """Every process's blocks, read anew."""
        self.blocks = self._read()
        return self.blocks

    def done(self, attack: str) -> set[int]:
        """The samples that have a verdict under this attack."""
        return {i for block in self.blocks if block["attack"] == attack for i in block["ids"]}

    def add(self, block: dict[str, Any]) -> None:
        """Writes a block through to the disk."""
        self.blocks.append(block)
        new = not self._own.exists() or not _complete(self._own)
        if new:
            self._own.unlink(missing_ok=True)
        lines = [self.about, block] if new else [block]
        _cut_torn_end(self._own)
        with self._own.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Deletes every process's file."""
        for path in self._files():
            path.unlink(missing_ok=True)


def column(blocks: Iterable[Mapping[str, Any]], attack: str, name: str, n: int) -> list[Any]:
    """One value a sample under an attack, in the samples' order; the first verdict counts."""
    found: dict[int, Any] = {}
    for block in blocks:
        if block["attack"] == attack:
            for sample, value in zip(block["ids"], block[name], strict=True):
                found.setdefault(sample, value)
    missing = n - len(found)
    if missing:
        raise RuntimeError(f"{missing} of {n} samples have no verdict under {attack}.")
    return [found[sample] for sample in sorted(found)]


def _complete(path: Path) -> list[dict[str, Any]]:
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def _cut_torn_end(path: Path) -> None:
    # What a killed process left of a line would spoil the next one.
    if path.exists():
        kept = path.read_bytes().rpartition(b"\n")
        if kept[2]:
            os.truncate(path, len(kept[0]) + 1)
