"""Loads the compiled module `fastard._C` and says what it offers, and why not.

Importing this never initialises CUDA.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
from types import ModuleType

import torch

OLDEST_TORCH = (2, 11)


def torch_version(text: str = torch.__version__) -> tuple[int, int]:
    """Major and minor of a torch version string."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _load() -> tuple[ModuleType | None, str]:
    if torch_version() < OLDEST_TORCH:
        wanted = ".".join(map(str, OLDEST_TORCH))
        return None, f"torch {torch.__version__} is older than {wanted}"
    try:
        module = importlib.import_module("fastard._C")
    except ImportError as error:
        return None, f"fastard._C could not be loaded ({error})"
    wanted = os.environ.get("FASTARD_CPU_ISA", "")
    if wanted and module.cpu_isa() != wanted:
        raise ValueError(
            "FASTARD_CPU_ISA must be base, avx2 or avx512, and one that this CPU has, not "
            f"{wanted!r}."
        )
    return module, f"fastard._C, {module.cpu_isa()} kernels"


module, reason = _load()


@functools.cache
def cuda() -> tuple[bool, str]:
    """Whether `_C` can run on this machine's CUDA devices, and the reason; initialises CUDA."""
    if module is None:
        return False, reason
    if torch.version.hip:
        return False, "torch is built for ROCm, fastard._C for CUDA"
    if not module.has_cuda:
        return False, f"fastard._C was built without CUDA: {module.cuda_reason}"
    if not torch.cuda.is_available():
        return False, "torch sees no CUDA device"
    runtime, driver = module.cuda_versions()
    if driver // 1000 < runtime // 1000:
        return (
            False,
            f"the driver supports CUDA {driver / 1000:g}, fastard._C needs {runtime // 1000}",
        )
    capability = torch.cuda.get_device_capability()
    if capability < (7, 5):
        return False, f"compute capability {capability[0]}.{capability[1]} is below 7.5"
    return True, f"fastard._C, CUDA code for {module.cuda_archs}"
