"""What an evaluation has found so far, on disk block by block."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import fastard
from fastard.data import ImageSet, Streamed

VERSION = 2


class Journal:
    """Verdicts as lines of JSON beside the result's file; a process writes its own, all are read.

    A line is complete or it does not count: a process that is killed loses of the block it was at
    what the attack has not written to the block's `state_path`.

    Args:
        out: the result's file; the journal's names end in .part-RANK.jsonl beside it.
        about: what the verdicts depend on; another journal's verdicts are not taken.
        rank: this process's.

    Raises ValueError where a journal is there that belongs to another evaluation.
    """

    def __init__(self, out: Path, about: Mapping[str, Any], rank: int = 0) -> None:
        self.about = {"evaluation": VERSION, "fastard": fastard.__version__, **about}
        self._folder, self._name = out.parent, f".{out.name}"
        self._own = out.parent / f".{out.name}.part-{rank}.jsonl"
        self._begun = False
        self.blocks = self._read()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"{glob.escape(self._name)}.part-*.jsonl"))

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
        lines = [block] if self._begun or self._goes_on() else [self.about, block]
        self._begun = True
        with self._own.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def _goes_on(self) -> bool:
        """Whether there is a file to append to; what a killed process left of a line is cut."""
        if self._own.exists() and _complete(self._own):
            _cut_torn_end(self._own)
            return True
        self._own.unlink(missing_ok=True)
        return False

    def state_path(self, attack: str, ids: Sequence[int]) -> Path:
        """Where an attack on these samples keeps its own state: a name that is no other's."""
        whose = hashlib.sha256(json.dumps([self.about, attack, list(ids)]).encode()).hexdigest()
        return self._folder / f"{self._name}.state-{attack}-{ids[0]}-{whose[:16]}.json"

    def forget_state(self, attack: str, ids: Sequence[int]) -> None:
        """Deletes the state of an attack whose block has been added."""
        for path in self._states(self.state_path(attack, ids).name):
            _delete(path)

    def _states(self, name: str) -> list[Path]:
        """The files and folders of this name, and what a killed process left of writing them."""
        stem = glob.escape(name.removesuffix(".json"))
        return [*self._folder.glob(f"{stem}*"), *self._folder.glob(f".{stem}*")]

    def remove(self) -> None:
        """Deletes every process's files."""
        for path in (*self._files(), *self._states(f"{self._name}.state-")):
            _delete(path)
        self._begun = False


def images_digest(images: ImageSet) -> str:
    """What tells these images and labels from others: of files that stay there, their names."""
    found = hashlib.sha256(images.y.cpu().numpy().tobytes())
    if isinstance(images, Streamed):
        found.update("\n".join(map(str, images.files)).encode())
    else:
        for rows in torch.arange(len(images), device=images.device).split(1024):
            found.update(images.float(rows).cpu().numpy().tobytes())
    return found.hexdigest()


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
    kept = path.read_bytes().rpartition(b"\n")
    if kept[2]:
        os.truncate(path, len(kept[0]) + 1)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
