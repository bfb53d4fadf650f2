"""Runs small enough for tests."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from fastard.train import TrainConfig

# Of a row, what no two runs share.
TIMES = ("images_per_s", "seconds", "attack_share", "teacher_share", "student_share")


def quick(out, **settings) -> TrainConfig:
    """A run of TRADES over 4 steps an epoch."""
    defaults = {"method": "trades", "student": "small_cnn-4", "steps": 2, "epochs": 2, "val": 40}
    defaults |= {"train_n": 256, "batch_size": 64, "val_steps": 2, "threads": 1}
    return TrainConfig(**{**defaults, "out": out, "no_tensorboard": True, **settings})


def assert_same_weights(a, b, name="last.safetensors"):
    """Two runs' checkpoints hold the same bits."""
    a, b = load_file(a / name), load_file(b / name)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def without_times(rows):
    """The metrics that do not depend on the machine's load."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
