"""CIFAR-sized networks as the papers' code defines them, and their checkpoints.

Every network takes raw images in [0, 1], NCHW; `Normalized` puts a mean and a standard deviation in
front of one whose weights expect them.
"""

from __future__ import annotations

from fastard.models.checkpoint import load, load_checkpoint, save
from fastard.models.logit_map import LogitMap
from fastard.models.normalized import Normalized
from fastard.models.registry import build, names
from fastard.models.state_files import load_state
from fastard.models.teachers import load_teacher

__all__ = [
    "LogitMap", "Normalized", "build", "load", "load_checkpoint", "load_state", "load_teacher",
    "names", "save",
]  # fmt: skip
