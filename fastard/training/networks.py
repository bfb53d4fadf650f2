"""The networks of a run and the method around them, as the processes of the run hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from fastard.data import Splits
from fastard.methods import Method
from fastard.training import parts
from fastard.training.config import Resolved
from fastard.training.ranks import Ranks
from fastard.training.sharded import Sharded


@dataclass(frozen=True)
class Networks:
    """The student whole, the method that trains it, and the student's parts under FSDP2."""

    student: nn.Module
    method: Method
    sharded: Sharded | None


def build_networks(config: Resolved, splits: Splits, ranks: Ranks) -> Networks:
    """A fresh student, its teachers and the method, ready for an optimiser.

    Raises ValueError or FileNotFoundError for networks that do not fit, and ValueError where the
        processes would not train as one.
    """
    ranks.require_divisible(config)
    student = parts.build_student(config, splits)
    parts.require_statistics(config, student, splits)
    student = ranks.synced(student)
    teachers = parts.load_teachers(config, splits)
    sharded = Sharded(student) if config.parallel == "fsdp" else None
    trained = student if sharded is None else sharded.parts
    if config.compile:
        trained = cast(nn.Module, torch.compile(student))
    method = parts.build_method(config, trained, teachers, len(splits.train))
    # Networks of the method's own, which are trained along.
    ranks.synced(method)
    if sharded is not None:
        sharded.attack_whole(method)
    return Networks(student, method, sharded)
