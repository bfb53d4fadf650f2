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


def serves(archs: str, capability: tuple[int, int]) -> bool:
    """Whether code for `archs`, as CMake lists architectures, runs on a device.

    Machine code runs on its own major from its minor on ("90a" on 9.0 alone), PTX on its
    architecture and whatever is newer.
    """
    for arch in filter(None, re.split("[;,]", archs)):
        number, _, kind = arch.partition("-")
        exact = number[-1:].isalpha()
        digits = number.rstrip("af")
        own = int(digits[:-1]), int(digits[-1])
        if exact:
            if own == capability:
                return True
            continue
        machine = kind != "virtual" and own[0] == capability[0] and own[1] <= capability[1]
        if machine or (kind != "real" and own <= capability):
            return True
    return False


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
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if capability < (7, 5):
            return False, f"compute capability {capability[0]}.{capability[1]} is below 7.5"
        if not serves(module.cuda_archs, capability):
            found = f"compute capability {capability[0]}.{capability[1]}"
            return False, f"fastard._C holds code for {module.cuda_archs}, none for {found}"
    return True, f"fastard._C, CUDA code for {module.cuda_archs}"
