"""AutoAttack beside the official code: python -m benchmarks.autoattack --data FOLDER.

Agreement: APGD-CE, APGD-T, FAB-T and Square alone, each on every image, in the official package
and in fastard with compat="official", eager (no verdict may differ) and on the engine (one may).
Speed: the standard version as a whole and by parts; APGD beside torchattacks' and adv_lib's.

Each part runs in a process of its own and leaves a file in --scratch; a part that is there already
is not run again, so that a run that was broken off goes on. --out is rewritten after every part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastard.files import write_json

from . import environment, timing
from .autoattack_agreement import agreement
from .autoattack_case import case
from .autoattack_speed import apgd_alone, standard
from .autoattack_table import told


@dataclass(frozen=True)
class Part:
    """A kind ("agreement", "speed", "apgd"), a network, a norm, how much of it on both sides."""

    kind: str
    network: str
    norm: str
    images: int
    attack: str = ""
    queries: int = 5000
    targets: int = 9

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.kind, self.network, self.norm, self.attack)))


def _whole(attack: str, network: str, norm: str) -> Part:
    """An agreement part; L2 and L1, whose projections cost the official code most, in short."""
    if norm == "Linf":
        return Part("agreement", network, norm, 200, attack)
    targets = 3 if attack == "fab-t" else 9
    return Part("agreement", network, norm, 200, attack, 1000, targets)


# The longest first, so that two processes end together.
_ORDER = ("fab-t", "square", "apgd-t", "apgd-ce")
_NETWORKS = (
    ("resnet4b", "L1"), ("resnet4b", "L2"), ("resnet4b", "Linf"), ("cnn_a", "Linf"),
    ("rslad", "Linf"),
)  # fmt: skip
AGREEMENT = [_whole(attack, *on) for attack in _ORDER for on in _NETWORKS]
SPEED = [
    Part("speed", "resnet4b", "Linf", 100), Part("speed", "cnn_a", "Linf", 100),
    Part("apgd", "resnet4b", "Linf", 100), Part("apgd", "cnn_a", "Linf", 100),
    Part("speed", "resnet18", "Linf", 20),
]  # fmt: skip
PARTS = {part.name: part for part in (*AGREEMENT, *SPEED)}


def measure(part: Part, root: str, scratch: Path) -> dict[str, Any]:
    """One part's figures."""
    on = case(part.network, part.norm, part.images, root, scratch)
    on.targets = part.targets
    if part.kind == "agreement":
        found = agreement(on, part.attack, part.queries)
    else:
        found = standard(on, part.queries) if part.kind == "speed" else apgd_alone(on)
    return {"part": part.name, "kind": part.kind} | found


def _one(args: argparse.Namespace) -> int:
    """Runs one part in this process and writes its file."""
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", category=UserWarning)
    part = PARTS[args.part]
    idle, begun = timing.idle_share(), time.perf_counter()
    found = measure(part, args.data, args.scratch)
    found |= {
        "idle": idle, "threads": args.threads,
        "took_seconds": round(time.perf_counter() - begun, 1),
    }  # fmt: skip
    write_json(args.scratch / f"{part.name}.json", found)
    return 0


def _start(name: str, args: argparse.Namespace, threads: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.autoattack", "--part", name, "--data", args.data]
    command += ["--scratch", str(args.scratch), "--threads", str(threads)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)})


def run_parts(names: list[str], args: argparse.Namespace, at_once: int, threads: int) -> bool:
    """Runs the parts, so many at once; False where one failed."""
    waiting, running, well = list(names), dict[str, subprocess.Popen[bytes]](), True
    while waiting or running:
        while waiting and len(running) < at_once:
            name = waiting.pop(0)
            running[name] = _start(name, args, threads)
        time.sleep(0.2)
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                well &= process.returncode == 0
                if process.returncode == 0:
                    for line in told(json.loads((args.scratch / f"{name}.json").read_text())):
                        print(line, flush=True)
                else:
                    print(f"{name} FAILED with exit status {process.returncode}", flush=True)
                collect(args)
    return well


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """Writes everything measured so far to --out."""
    files = [args.scratch / f"{name}.json" for name in PARTS]
    parts = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    machine = environment.of_cpu() | {"threads": args.threads}
    run = {"environment": machine, "parts": parts}
    write_json(args.out, run)
    return run


def main(argv: list[str] | None = None) -> int:
    """Measures and prints; 1 where a part failed or verdicts differ more than they may."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autoattack")
    parser.add_argument(
        "--data", default=os.environ.get("FASTARD_DATA"),
        help="CIFAR-10 in torchvision's layout (or packed) and teachers/; default FASTARD_DATA",
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", default=[""], help="parts whose names begin so")
    parser.add_argument("--again", action="store_true", help="run parts that are there already")
    parser.add_argument("--threads", type=int, default=2, help="of the timed parts")
    parser.add_argument(
        "--jobs", type=int, default=2, help="agreement parts at once, a thread each"
    )
    parser.add_argument("--scratch", type=Path, default=Path("runs/autoattack"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_autoattack.json"))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not args.data:
        parser.error("--data must name the folder of CIFAR-10 and the robust teachers")
    args.scratch.mkdir(parents=True, exist_ok=True)
    if args.part:
        return _one(args)
    chosen = [name for name in PARTS if name.startswith(tuple(args.only))]
    if not chosen:
        parser.error(f"--only matches none of {', '.join(PARTS)}")
    if args.again:
        for name in chosen:
            (args.scratch / f"{name}.json").unlink(missing_ok=True)
    left = [name for name in chosen if not (args.scratch / f"{name}.json").exists()]
    if any(PARTS[name].network == "rslad" for name in left):
        # Trained once, before two processes would.
        case("rslad", "Linf", 1, args.data, args.scratch)
    parallel = [name for name in left if PARTS[name].kind == "agreement"]
    timed = [name for name in left if name not in parallel]
    well = run_parts(parallel, args, args.jobs, 1)
    well &= run_parts(timed, args, 1, args.threads)
    run = collect(args)
    agrees = all(
        mode["agrees"]
        for part in run["parts"]
        for mode in (part["modes"].values() if part["kind"] == "agreement" else [part])
    )
    return 0 if well and agrees else 1


if __name__ == "__main__":
    raise SystemExit(main())
