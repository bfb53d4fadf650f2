"""The network that is evaluated: a checkpoint, or a library's by name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fastard import data, models


def is_elsewhere(checkpoint: Path) -> bool:
    """Whether this is no file of its own but a network that `load_teacher` knows by name."""
    return not checkpoint.exists() and (":" in str(checkpoint) or "@" in str(checkpoint))


def weights_file(checkpoint: Path) -> Path | None:
    """The file that holds the weights, if it is one."""
    if not is_elsewhere(checkpoint):
        return checkpoint
    at = str(checkpoint).partition("@")[2]
    return Path(at) if at else None


def beside(checkpoint: Path, suffix: str) -> Path:
    """A file beside that of the weights, or, where there is none, in the current folder."""
    file = weights_file(checkpoint)
    if file is not None:
        return file.with_suffix(suffix)
    return Path(str(checkpoint).replace(":", "-").replace("/", "-") + suffix)


@dataclass
class Subject:
    """A network and what is known of it.

    Attributes:
        meta: of a checkpoint what it says; None of a network from elsewhere, which `load` makes
            once the data's shapes are known.
    """

    text: str
    name: str | None = None
    model: nn.Module | None = None
    meta: dict[str, Any] | None = None
    trained: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Path, name: str | None) -> Subject:
        """A checkpoint, read; or `KIND:NAME`, `KIND:NAME@FILE`, `NAME@FILE` of `load_teacher`."""
        text = str(checkpoint)
        if is_elsewhere(checkpoint):
            return cls(text, name)
        model, meta = models.load_checkpoint(checkpoint, name=name)
        return cls(text, name, model, meta, meta["extra"])

    @property
    def architecture(self) -> str:
        """What the checkpoint says it is, or the name that it was asked for by."""
        if self.meta is not None:
            return str(self.meta["architecture"])
        return self.text.partition("@")[0]

    def load(self, splits: data.Splits) -> nn.Module:
        """The network, which must fit the data."""
        if self.model is None:
            self.model = models.load_teacher(
                self.text, name=self.name, num_classes=splits.num_classes,
                in_channels=splits.in_channels, image_size=splits.image_size)  # fmt: skip
        return self.model

    def digest(self) -> str:
        """What tells its weights from others."""
        file = weights_file(Path(self.text))
        if file is not None:
            return hashlib.sha256(file.read_bytes()).hexdigest()
        assert self.model is not None
        found = hashlib.sha256(self.text.encode())
        for name, tensor in self.model.state_dict().items():
            found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()
