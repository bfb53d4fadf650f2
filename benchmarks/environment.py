"""What a figure depends on: the processor, the GPU, the versions, the commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import fastard
from fastard import native

from . import timing
from .record import Environment

ROOT = Path(__file__).resolve().parent.parent
# Read only: clocks and power stay as they are found.
QUERY = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"


def record(suite: str, device: str, given: str | None = None) -> Environment:
    """The first line of a result file."""
    from .rivals import versions as rival_versions

    machine: dict[str, Any] = {
        "cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "isa": native.module.cpu_isa() if native.module else None, "amx": amx(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.system(), "idle_share": timing.idle_share(),
        "gpu": gpu() if device == "cuda" else None,
    }  # fmt: skip
    return Environment(
        suite=suite, machine=machine, versions={
            **{k: None if v is None else str(v) for k, v in versions().items()},
            **rival_versions(),
        },
        commit=commit(given), begun=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        fastard=fastard.__version__)  # fmt: skip


def amx() -> bool:
    """Whether the processor multiplies tiles in bf16."""
    return any("amx_bf16" in line for line in _cpu_lines("flags"))


def _cpu_lines(key: str) -> list[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(key)]


def of_cpu() -> dict[str, Any]:
    """What a figure of the CPU depends on, the commit too, without naming the machine."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": native.module.cpu_isa() if native.module else None,
        "compiler": native.module.compiler if native.module else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastard": fastard.__version__,
        "commit": commit(),
    }


def cpu_name() -> str:
    """The processor as /proc/cpuinfo or the platform module names it."""
    return next(iter(_cpu_lines("model name")), platform.processor() or platform.machine())


def said(*command: str) -> str | None:
    """What a command prints, or None where it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit(given: str | None = None) -> dict[str, Any]:
    """The commit and whether files differ from it; what was given where git does not say."""
    # An installed package may lie inside a repository that is not its own.
    head = said("git", "rev-parse", "HEAD") if (ROOT / ".git").exists() else None
    if head is None:
        return {"id": given, "dirty": None, "reason": "git names no commit here"}
    return {"id": head, "dirty": bool(said("git", "status", "--porcelain"))}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_cuda_tool(name: str) -> str | None:
    """A tool of the CUDA toolkit: on PATH, under CUDA_HOME, beside nvcc, in the usual place."""
    if found := shutil.which(name):
        return found
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"),
             str(Path(nvcc).resolve().parents[1]) if nvcc else None,
             str(Path(os.sep, "usr", "local", "cuda"))]  # fmt: skip
    for home in filter(None, homes):
        for folder in ("bin", name):
            path = Path(home, folder, name)
            if path.is_file() and os.access(path, os.X_OK):
                return str(path)
    return None


def gpu() -> dict[str, Any]:
    """The first GPU, its clocks and driver as they are found."""
    properties = torch.cuda.get_device_properties(0)
    major, minor = properties.major, properties.minor
    smi = said("nvidia-smi", "--id=0", f"--query-gpu={QUERY}", "--format=csv,noheader")
    state = dict(zip(QUERY.split(","), (smi or "").split(", "), strict=False)) if smi else {}
    return {
        "name": properties.name,
        "capability": f"{major}.{minor}",
        "arch": f"{major}{minor}-real",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "devices": torch.cuda.device_count(),
        "nvidia_smi": state,
    }


def versions() -> dict[str, Any]:
    nvcc = find_cuda_tool("nvcc")
    told = said(nvcc, "--version") if nvcc else None
    cudnn = torch.backends.cudnn.version()
    return {
        "fastard": fastard.__version__,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "triton": version("triton"),
        "python": platform.python_version(),
        "nvcc": told.splitlines()[-1] if told else None,
    }
