"""What a GPU figure depends on: the device, the driver, the versions, the commit, the binary.

A step of `make gpu-check`; alone: python -m benchmarks.gpu_environment --record FILE.json
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastard import native

from .environment import commit, cpu_name, find_cuda_tool, gpu, versions
from .gpu_record import put

__all__ = ["binary", "commit", "find_cuda_tool", "main"]


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
    found = {"gpu": gpu(), "versions": versions(), "machine": machine,
             "commit": commit(arguments.commit)}  # fmt: skip
    put(arguments.record, found, "environment")
    print(found["gpu"]["name"], found["versions"]["torch"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
