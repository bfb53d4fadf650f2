"""One network's attacks in a process of its own: what the first call costs, what memory is held.

python -m benchmarks.attack_process MODEL fastard|eager --batch 32 --calls 3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

import fastard

from . import published

ROOT = Path(__file__).resolve().parent.parent
STATM = Path("/proc/self/statm")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak(threading.Thread):
    """Watches how much more memory the process holds than when it began."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.base = self.peak = resident()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.002):
            self.peak = max(self.peak, resident())

    def stop(self) -> int:
        self.done.set()
        self.join()
        return self.peak - self.base


def attacks(model: str, how: str, batch: int, calls: int, precision: str) -> dict[str, Any]:
    """Seconds of each one-step attack in turn and the peak of memory over them."""
    net = fastard.models.build(model)
    x, logits = torch.rand(batch, 3, 32, 32), torch.randn(batch, 10)
    seconds, peak = [], Peak() if STATM.exists() else None
    if peak is not None:
        peak.start()
    for _ in range(calls):
        begun = time.perf_counter()
        if how == "eager":
            published.rslad(net, logits, x, steps=1)
        else:
            fastard.pgd_kl(net, x, logits, steps=1, precision=precision)
        seconds.append(time.perf_counter() - begun)
    return {"seconds": seconds, "peak_bytes": peak.stop() if peak is not None else None}


def alone(model: str, how: str, *, batch: int, calls: int, precision: str = "fp32",
          held: bool = False) -> dict[str, Any]:  # fmt: skip
    """`attacks` in a fresh process. `held`: freed blocks go back at once, so that what is resident
    is what is held, and not how the heap fell apart."""
    command = [sys.executable, "-m", f"{__package__}.attack_process", model, how, "--batch",
               str(batch), "--calls", str(calls), "--precision", precision]  # fmt: skip
    env = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "131072"} if held else {})
    # Where Python finds this very package: a checkout's root, or the folder of the installed one.
    where = ROOT if __package__ == "benchmarks" else ROOT.parent
    done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"an attack on {model} in its own process failed: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def set_up(model: str, batch: int, processes: int = 3) -> float:
    """Seconds that the first call takes beyond a later one, the least of fresh processes."""
    runs = [alone(model, "fastard", batch=batch, calls=4)["seconds"] for _ in range(processes)]
    return min(first - min(later) for first, *later in runs)


def memory_share(model: str, batch: int) -> float | None:
    """The peak of two attacks over that of eager autograd's; None where /proc does not say."""
    ours, eager = (alone(model, how, batch=batch, calls=calls, held=True)["peak_bytes"]
                   for how, calls in (("fastard", 2), ("eager", 1)))  # fmt: skip
    return None if ours is None or eager is None else ours / eager


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("how", choices=("fastard", "eager"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--calls", type=int, default=1)
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    print(json.dumps(attacks(args.model, args.how, args.batch, args.calls, args.precision)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
