"""RSLAD with the engine and without it, seed by seed: python -m benchmarks.engine_training.

Trains the demo's student on digits, from one TRADES teacher, through `fastard.train` once with the
engine's attacks and once with eager autograd's (``engine=False``), and compares what the students
withstand. Both arms of a seed begin with equal weights, batches and noise; rounding parts them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastard import data, models
from fastard.engine import Program
from fastard.evaluate import evaluate
from fastard.files import write_json
from fastard.train import TrainConfig, train

from . import environment
from .demo import DATA, NETWORKS
from .demo_timing import one_thread

SEEDS = tuple(range(8))
ARMS = {"engine": True, "eager": False}
ACCURACIES = {"clean": "clean", "pgd20": "pgd_sat"}
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}


def accuracies(checkpoint: Path, test: data.Images) -> dict[str, float]:
    """Clean and PGD-20 accuracy in % of a run's network, one protocol for both arms."""
    model, meta = models.load_checkpoint(checkpoint)
    suite = evaluate(model, test, eps=meta["extra"]["eps"], seed=0)
    return {name: round(100 * suite["accuracy"][key], 2) for name, key in ACCURACIES.items()}


def engine_runs(checkpoint: Path, test: data.Images) -> str:
    """Why the engine runs this network compiled or not, so that two eager arms are found out."""
    program = Program(models.load_checkpoint(checkpoint)[0].eval(), "fp32")
    program.forward(test.float(slice(0, 2)))
    assert program.made is not None
    return f"{'compiled' if program.made.plan else 'eager'}: {program.made.reason}"


def summary(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of both arms, the mean of the paired differences engine - eager, and their spread.

    `noise` is the half-width of the paired 95 % interval; a difference below it is none.
    """
    found: dict[str, Any] = {}
    for name in ACCURACIES:
        arms = {arm: [seed[arm][name] for seed in seeds] for arm in ARMS}
        apart = [a - b for a, b in zip(arms["engine"], arms["eager"], strict=True)]
        spread = statistics.stdev(apart)
        noise = STUDENT_T[len(apart) - 1] * spread / math.sqrt(len(apart))
        difference = statistics.mean(apart)
        found[name] = {
            "mean": {arm: round(statistics.mean(values), 3) for arm, values in arms.items()},
            "between_seeds": {a: round(statistics.stdev(v), 3) for a, v in arms.items()},
            "difference": round(difference, 3),
            "difference_spread": round(spread, 3),
            "noise": round(noise, 3),
            "within_noise": abs(difference) <= noise,
        }
    return found


def run(out: Path, seeds: Sequence[int], epochs: int | None) -> dict[str, Any]:
    """Trains teacher and students in a scratch folder and writes `out` after every seed."""
    test = data.load(DATA).test
    with tempfile.TemporaryDirectory() as scratch, one_thread():
        folder = Path(scratch)
        common: dict[str, Any] = {"data": DATA, "device": "cpu", "epochs": epochs}
        student, teacher = NETWORKS["rslad"], NETWORKS["trades"]
        taught = train(TrainConfig(method=teacher.method, student=teacher.architecture, seed=0,
                                   out=folder / "teacher", **common))  # fmt: skip
        assert taught is not None
        best = "best.safetensors"
        record: dict[str, Any] = {
            "complete": False, "environment": environment.of_cpu(), "data": DATA,
            "method": student.method, "student": student.architecture,
            "teacher": {"method": teacher.method, "model": teacher.architecture,
                        **accuracies(folder / "teacher" / best, test)},
            "test_images": len(test), "epochs": taught.config.epochs,
            "attack": {k: getattr(taught.config, k) for k in ("eps", "alpha", "steps")},
            "seeds": [],
        }  # fmt: skip
        for seed in seeds:
            row: dict[str, Any] = {"seed": seed}
            for arm, engine in ARMS.items():
                place = folder / f"{arm}-{seed}"
                train(TrainConfig(
                    method=student.method, student=student.architecture, seed=seed,
                    teacher=folder / "teacher" / best, options={"engine": engine}, out=place,
                    **common))  # fmt: skip
                row[arm] = accuracies(place / best, test)
            record["engine"] = engine_runs(place / best, test)
            record["seeds"].append(row)
            print(f"seed {seed}: engine {row['engine']}, eager {row['eager']}", flush=True)
            write_json(out, record)
    if len(seeds) > 1:
        record["accuracy"] = summary(record["seeds"])
    record["complete"] = True
    write_json(out, record)
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 where the arms differ by more than noise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_training")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/engine_training.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--epochs", type=int, help="the digits' default else")
    arguments = parser.parse_args(argv)
    record = run(arguments.out, arguments.seeds, arguments.epochs)
    for name, found in record.get("accuracy", {}).items():
        print(
            f"{name}: engine {found['mean']['engine']:.2f} %, eager {found['mean']['eager']:.2f} %,"
            f" difference {found['difference']:+.2f}, noise {found['noise']:.2f}"
        )
    return 0 if all(v["within_noise"] for v in record.get("accuracy", {}).values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
