"""The random number generators a run draws from, saved and restored as plain values."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch


def capture(device: torch.device) -> dict[str, Any]:
    """The states of torch's generators (CPU, and the device's), numpy's and Python's."""
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [str(name), torch.tensor(keys.astype(np.int64)), *rest],
        "python": [version, list(numbers), gauss],
    }


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Puts every generator where `capture` found it; the device's only on the same kind."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
