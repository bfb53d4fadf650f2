"""An evaluation's state on disk: the official JSON, and the adversarials beside it."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import time
import warnings
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastard.files import atomic_path, write_json

SAVE_EVERY = 60
_FIELDS = ("_attacks_to_run", "_run_attacks", "_robust_flags", "_clean_accuracy")


@dataclass
class Found:
    """What one batch of an attack found.

    Attributes:
        attack: its name. rows: every sample of the batch, positions in x.
        broken: positions in `rows` of those it broke; adv and predicted are theirs.
    """

    attack: str
    rows: Tensor
    broken: Tensor
    adv: Tensor
    predicted: Tensor


@dataclass
class EvaluationState:
    """What the official `EvaluationState` keeps, in its JSON's fields.

    The flags are written after every batch; what else changes, at most once a minute.
    """

    path: Path | None
    attacks_to_run: set[str]
    run_attacks: list[str] = field(default_factory=list)
    robust_flags: Tensor | None = None
    clean_accuracy: float = math.nan
    _saved: float = -math.inf

    def save(self, force: bool = False) -> None:
        """Writes the JSON, if a minute has passed since the last time or it is forced."""
        if self.path is None or (time.monotonic() - self._saved < SAVE_EVERY and not force):
            return
        self._saved = time.monotonic()
        flags = self.robust_flags
        content = {
            # The official code writes its set's text; so does this, for whoever reads it.
            "_attacks_to_run": str(self.attacks_to_run),
            "path": str(self.path),
            "_run_attacks": self.run_attacks,
            "_robust_flags": None if flags is None else flags.tolist(),
            "_last_saved": str(datetime.now()),
            "_SAVE_TIMEOUT": SAVE_EVERY,
            "_clean_accuracy": self.clean_accuracy,
        }
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> EvaluationState:
        """Reads a file of the official code or our own.

        Raises:
            ValueError: it is no such file.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            attacks, run, flags, clean = (content[name] for name in _FIELDS)
            if isinstance(attacks, str):
                attacks = ast.literal_eval(attacks) if attacks != "set()" else set()
            robust = None if flags is None else torch.tensor(flags, dtype=torch.bool)
            state = cls(path, set(attacks), list(run), robust, float(clean))
        except (ValueError, KeyError, TypeError, SyntaxError) as error:
            raise ValueError(
                f"state_path must be a file of AutoAttack's state, but {path} is not: {error!r}."
            ) from error
        if content.get("path") not in (None, str(path)):
            warnings.warn(
                "The given path is different from the one found in the state file.", stacklevel=2
            )
        return state


def identity(x: Tensor, y: Tensor, eps: float, norm: str, seed: float | None) -> dict[str, Any]:
    """What a state belongs to: digests of images and labels, and the settings beside them."""
    return {
        "x": _digest(x), "y": _digest(y), "eps": eps, "norm": norm, "seed": seed,
    }  # fmt: skip


def _digest(t: Tensor) -> str:
    values = t.detach().cpu().contiguous().numpy()
    return hashlib.sha256(f"{t.dtype} {list(t.shape)}".encode() + values.tobytes()).hexdigest()


class Adversarials:
    """The images found, a file a batch in a folder beside the state: `path`.adversarials."""

    def __init__(self, state_path: Path) -> None:
        self.folder = state_path.with_name(state_path.name + ".adversarials")

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.safetensors"))

    @property
    def _owner(self) -> Path:
        return self.folder / "of.json"

    def begin(self, of: dict[str, Any]) -> None:
        """Forgets what another evaluation left under this name; the folder is that of `identity`
        `of` from now on."""
        for file in self._files():
            file.unlink()
        self.folder.mkdir(exist_ok=True)
        write_json(self._owner, of)

    def require_of(self, of: dict[str, Any]) -> None:
        """Raises ValueError where the folder says that it belongs to another `identity`."""
        if not self._owner.exists():
            return
        known = json.loads(self._owner.read_text(encoding="utf-8"))
        others = [name for name, value in of.items() if known.get(name) != value]
        if others:
            raise ValueError(
                f"state_path must be a file of this evaluation, but {self.folder} holds images of "
                f"one with other {' and '.join(others)}."
            )

    def add(self, found: Found) -> None:
        """Writes a batch's finds; call it before the flags are saved."""
        self.folder.mkdir(exist_ok=True)
        tensors = {
            name: getattr(found, name).cpu().contiguous()
            for name in ("rows", "broken", "adv", "predicted")
        }
        number = len(self._files())
        with atomic_path(self.folder / f"{number:06d}.safetensors") as temporary:
            save_file(tensors, temporary, {"attack": found.attack})

    def read(self) -> list[Found]:
        """Every batch's finds, in the order in which they were made."""
        batches = []
        for file in self._files():
            with safe_open(file, framework="pt") as content:
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
                batches.append(Found(content.metadata()["attack"], **tensors))
        return batches
