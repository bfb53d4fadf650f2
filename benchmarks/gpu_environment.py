"""What a GPU figure depends on: the device, the driver, the versions, the commit, the binary.

A step of `make gpu-check`; alone: python -m benchmarks.gpu_environment --record FILE.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fastard
from fastard import native

from .gpu_record import put
from .timing import cpu_name

ROOT = Path(__file__).resolve().parent.parent
# Read only: clocks and power stay as they are found.
QUERY = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"


def said(*command: str) -> str | None:
    """What a command prints, or None where it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit(given: str | None = None) -> dict[str, Any]:
    """The commit and whether files differ from it; what was given where git does not say."""
    head = said("git", "rev-parse", "HEAD")
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


def device() -> dict[str, Any]:
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
    return {
        "fastard": fastard.__version__,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": version("triton"),
        "python": platform.python_version(),
        "nvcc": told.splitlines()[-1] if told else None,
    }


def binary() -> dict[str, Any]:
    """What the compiled module holds and whether it can be used on this device."""
    usable, reason = native.cuda()
    module = native.module
    return {
        "usable": usable,
        "reason": reason,
        "failures": [] if usable else [f"the compiled kernels cannot be used: {reason}"],
        "archs": module.cuda_archs if module else None,
        "compiler": module.compiler if module else None,
        "cuda_runtime_and_driver": module.cuda_versions() if module and module.has_cuda else None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Adds "environment", or with --binary "binary", to the record; 1 for an unusable binary."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_environment")
    parser.add_argument("--record", type=Path, required=True, help="JSON file to add to")
    parser.add_argument("--commit", help="the commit, where git does not say")
    parser.add_argument("--binary", action="store_true", help="look at the compiled module alone")
    arguments = parser.parse_args(argv)
    if arguments.binary:
        found = binary()
        put(arguments.record, found, "binary")
        print(found["reason"])
        return 0 if found["usable"] else 1
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.system()}
    found = {"gpu": device(), "versions": versions(), "machine": machine,
             "commit": commit(arguments.commit)}  # fmt: skip
    put(arguments.record, found, "environment")
    print(found["gpu"]["name"], found["versions"]["torch"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
