"""The CPU's instruction sets, each forced in a process of its own."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import torch


def isas() -> list[str]:
    """The instruction sets that can be forced here, narrowest first."""
    found = ["base"]
    if torch.cpu._is_avx2_supported():
        found.append("avx2")
    if torch.cpu._is_avx512_supported():
        found.append("avx512")
    return found


@functools.cache
def forced(isa: str, checks: str) -> list[str]:
    """The words that `checks` prints in a fresh process whose kernels are those of `isa`."""
    environment = {**os.environ, "FASTARD_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    environment.pop("FASTARD_BACKEND", None)
    done = subprocess.run(
        [sys.executable, "-c", checks], capture_output=True, text=True, env=environment,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
