"""The folder of a training run: its settings, metrics, checkpoints and pictures."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from torch import nn

from fastard import models
from fastard.files import atomic_path, require_writable_dir
from fastard.training.lock import locked


@contextlib.contextmanager
def intact(path: Path) -> Iterator[None]:
    """Whatever the block that reads `path` stumbles over becomes one sentence.

    Raises ValueError naming the file.
    """
    try:
        yield
    # Damaged bytes and wrong entries surface as anything, from EOFError to KeyError.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"{reason} is missing"
        elif isinstance(error, pickle.UnpicklingError):
            # torch's own sentence advises to read the file unsafely.
            reason = "it is no torch file of tensors and plain values"
        raise ValueError(f"{path} is damaged: {reason.rstrip('.')}.") from error


class RunFolder:
    """The files of one run; every write is atomic, so that a reader never meets half of one."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.state = path / "state.pt"
        self.last = path / "last.safetensors"
        self.best = path / "best.safetensors"
        self.curves = path / "curves.png"
        self.examples = path / "examples.png"
        self.summary = path / "summary.html"
        self.tensorboard = path / "tensorboard"
        self.job = path / ".job"
        self._seen: tuple[int, ...] | None = None

    def refuse_existing(self) -> None:
        """Raises FileExistsError when a run was already started here."""
        if self.config.exists() or self.metrics.exists():
            raise FileExistsError(
                f"{self.path} holds a run already: give --resume to continue it or another --out."
            )

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Makes the folder; takes it away again when the block fails before an epoch was finished.

        A corrected run may then take its place. An interrupted one stays, to be resumed.

        Raises PermissionError or NotADirectoryError when the folder cannot be made or written, and
            FileExistsError when another run is at work in it.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            require_writable_dir(self.path)
            with locked(self.path / ".lock"), self._kept_if_begun():
                yield
        except BaseException:
            _remove_empty(made)
            raise

    @contextlib.contextmanager
    def _kept_if_begun(self) -> Iterator[None]:
        had_config = self.config.exists()
        try:
            yield
        except Exception:
            if not (had_config or self.state.exists() or self.metrics.exists()):
                self.config.unlink(missing_ok=True)
                self.job.unlink(missing_ok=True)
            raise

    def claim(self, job: str | None, *, fresh: bool) -> None:
        """Makes sure, in the opened folder, that it is still as this trainer has found or left it.

        A `fresh` run writes down which job of torchrun it belongs to.

        Raises FileExistsError when another run was at work here meanwhile.
        """
        if fresh:
            self.refuse_existing()
            self._seen = self._stamp()
            if job is not None:
                with self.writing(self.job) as temporary:
                    temporary.write_text(job, encoding="utf-8")
        if self._stamp() != self._seen:
            raise FileExistsError(
                f"another run has written {self.state} since this one has read it: give --resume "
                "to go on from there."
            )

    def began_in(self, job: str | None) -> bool:
        """Whether the run here was begun by this job of torchrun."""
        if job is None or not self.config.exists() or not self.job.exists():
            return False
        return self.job.read_text(encoding="utf-8") == job

    def _stamp(self) -> tuple[int, ...] | None:
        if not self.state.exists():
            return None
        about = self.state.stat()
        return about.st_ino, about.st_size, about.st_mtime_ns

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """Yields a temporary path that becomes `path` when the block succeeds.

        Raises OSError with one sentence where the disk is full or the folder not writable; `path`
            and every other file of the run stay as they were.
        """
        with self.kept(path):
            with atomic_path(path) as temporary:
                yield temporary

    @contextlib.contextmanager
    def kept(self, path: Path) -> Iterator[None]:
        """What a block that writes `path` atomically stumbles over becomes one sentence."""
        try:
            yield
        # torch and safetensors have errors of their own for a disk that is full.
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = _reason(error)
            reason = reason.removeprefix(f"cannot write {path}: ")
            whole = [p.name for p in (self.last, self.best, self.state) if p.exists()]
            left = f"{', '.join(whole)} are whole" if whole else "no checkpoint was saved yet"
            raise OSError(
                f"cannot write {path}: {reason.rstrip('.')}; training stopped, {left}."
            ) from error

    def write_config(self, values: dict[str, Any]) -> None:
        text = yaml.safe_dump(values, sort_keys=False)
        with self.writing(self.config) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def read_config(self) -> dict[str, Any]:
        """The settings of the run; raises FileNotFoundError when there is no run here."""
        if not self.config.exists():
            raise FileNotFoundError(f"{self.path} holds no run to resume: config.yaml is missing.")
        with intact(self.config):
            values = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise TypeError(f"it holds a {type(values).__name__} instead of settings")
        return values

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        with self.writing(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def read_metrics(self) -> list[dict[str, Any]]:
        if not self.metrics.exists():
            return []
        with intact(self.metrics):
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines]

    def write_weights(self, path: Path, network: nn.Module, **about: Any) -> None:
        """Saves a network as `models.save` does."""
        with self.kept(path):
            models.save(path, network, **about)

    def write_state(self, state: dict[str, Any]) -> None:
        # Through a file of Python's, whose errors say what the system said.
        with self.writing(self.state) as temporary, temporary.open("wb") as file:
            torch.save(state, file)
        self._seen = self._stamp()

    def read_state(self) -> dict[str, Any] | None:
        """What `write_state` wrote, on the CPU; None before the first saved state."""
        self._seen = self._stamp()
        if not self.state.exists():
            return None
        with intact(self.state):
            return torch.load(self.state, map_location="cpu", weights_only=True)


class Onlooker(RunFolder):
    """The same folder for a process that leaves the writing to another one: it writes nothing."""

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        yield

    def claim(self, job: str | None, *, fresh: bool) -> None:
        """Nothing."""

    def write_config(self, values: dict[str, Any]) -> None:
        """Nothing."""

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Nothing."""

    def write_weights(self, path: Path, network: nn.Module, **about: Any) -> None:
        """Nothing."""

    def write_state(self, state: dict[str, Any]) -> None:
        """Nothing."""


def _reason(error: BaseException) -> str:
    """The system's words for what went wrong, where one of the errors behind this has them."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.strerror:
            return behind.strerror
        behind = behind.__cause__ or behind.__context__
    return str(error).strip().split("\n")[0]


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders, the innermost first, up to the first that is not empty."""
    for folder in folders:
        if folder.is_dir():
            if any(folder.iterdir()):
                return
            folder.rmdir()
