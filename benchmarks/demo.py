"""`make demo`: three small networks on handwritten digits, attacked, timed and drawn.

Trains a natural student, a TRADES teacher and an RSLAD student of that teacher, measures what they
withstand on the fixed 500 test images, and times RSLAD's attack beside the published loop. It
claims nothing between TRADES and RSLAD, nor about speed: it prints what was seen.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from fastard import data, models
from fastard.evaluate import evaluate
from fastard.files import write_json
from fastard.train import TrainConfig, TrainResult, train
from fastard.training.defaults import resolve

from . import demo_figures, demo_folder, demo_timing

DATA, SEED, DEVICE = "digits", 0, "cpu"
# The columns of the table and the attacks of the suite "basic" that they show.
SHOWN = {"clean": "clean", "fgsm": "fgsm", "pgd20": "pgd_sat"}
TITLES = {"clean": "clean", "fgsm": "FGSM", "pgd20": "PGD-20"}


@dataclass(frozen=True)
class Network:
    """One network of the demo; `teacher` is the run that it learns from."""

    title: str
    method: str
    architecture: str
    teacher: str | None = None


NETWORKS = {
    "natural": Network("natural student", "natural", "small_cnn-16"),
    "trades": Network("TRADES teacher", "trades", "small_cnn"),
    "rslad": Network("RSLAD student", "rslad-batchmean", "small_cnn-16", teacher="trades"),
}


@dataclass(frozen=True)
class Bound:
    """A limit in % that a healthy run keeps with room to spare."""

    network: str
    accuracy: str
    limit: float
    most: bool = False

    def missed(self, accuracies: dict[str, dict[str, float]]) -> str | None:
        """Says by how much, or None."""
        value = accuracies[self.network][self.accuracy]
        if value <= self.limit if self.most else value >= self.limit:
            return None
        return (
            f"{NETWORKS[self.network].title} {TITLES[self.accuracy]} accuracy is {value:.1f} % "
            f"but must be at {'most' if self.most else 'least'} {self.limit:g} %"
        )


BOUNDS = (
    Bound("natural", "pgd20", 20.0, most=True),
    Bound("rslad", "pgd20", 65.0),
    Bound("rslad", "clean", 95.0),
)


def main(argv: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Runs the demo; returns 0, 1 for accuracies out of bounds, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write")
    parser.add_argument("--epochs", type=int, help="of each network; the digits' default else")
    parser.add_argument(
        "--no-bounds",
        action="store_true",
        help="succeed whatever the accuracies are, as they will be low after few epochs",
    )
    arguments = parser.parse_args(argv)
    console = console or Console()
    try:
        with demo_timing.one_thread():
            missed = run(arguments.out, arguments.epochs, console)
    except (ValueError, OSError, FloatingPointError) as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command starts the demo anew", 130)
    if missed and not arguments.no_bounds:
        return _complain(f"the demo missed its bounds: {'; '.join(missed)}", 1)
    return 0


def run(out: Path, epochs: int | None, console: Console) -> list[str]:
    """Does everything, writes `out` and prints the results; returns what missed its bound.

    Raises FileExistsError when `out` holds something else, ValueError for bad epochs,
    PermissionError or NotADirectoryError when `out` cannot be written.
    """
    begun = time.perf_counter()
    configs = _configs(out, epochs)
    for config in configs.values():
        resolve(config)
    demo_folder.prepare(out, NETWORKS)
    test = data.load(DATA, device=DEVICE).test
    runs: dict[str, TrainResult] = {}
    students: dict[str, nn.Module] = {}
    networks: dict[str, dict[str, Any]] = {}
    for name, network in NETWORKS.items():
        console.rule(network.title)
        started = time.perf_counter()
        runs[name] = result = train(configs[name], console)
        seconds = time.perf_counter() - started
        model, meta = models.load_checkpoint(result.out / "best.safetensors")
        suite = evaluate(model, test, eps=result.config.eps, seed=SEED, console=console)
        students[name] = model
        networks[name] = {
            "method": network.method,
            "architecture": network.architecture,
            "parameters": sum(p.numel() for p in model.parameters()),
            "epochs": result.config.epochs,
            "selected": meta["extra"]["selected"],
            "training_seconds": round(seconds, 2),
            "accuracy": {key: round(100 * suite["accuracy"][of], 2) for key, of in SHOWN.items()},
            "suite": {key: value for key, value in suite.items() if key != "verdicts"},
        }
    attack = demo_timing.compare(
        students["rslad"], students["trades"], data.load(DATA).train, runs["rslad"].config
    )
    titles = {name: network.title for name, network in NETWORKS.items()}
    demo_figures.draw_curves(out / "curves.png", {titles[name]: r for name, r in runs.items()})
    demo_figures.draw_examples(
        out / "examples.png",
        {titles[name]: students[name] for name in ("natural", "rslad")},
        test,
        runs["rslad"].config.eps,
    )
    accuracies = {name: values["accuracy"] for name, values in networks.items()}
    missed = [sentence for bound in BOUNDS if (sentence := bound.missed(accuracies))]
    seconds = round(time.perf_counter() - begun, 1)
    config = runs["rslad"].config
    write_json(
        out / demo_folder.RECORD,
        {
            **demo_folder.MARK,
            "complete": True,
            "config": {
                **{key: getattr(config, key) for key in ("data", "eps", "norm", "alpha", "steps")},
                **{key: getattr(config, key) for key in ("epochs", "batch_size", "val", "device")},
                "seed": SEED,
                "test_images": len(test),
            },
            "networks": networks,
            "attack": attack,
            "missed_bounds": missed,
            "seconds": seconds,
            **demo_folder.surroundings(),
        },
    )
    console.rule("results")
    console.print(_table(networks))
    for line in (*_caption(networks["rslad"]["suite"]), *demo_timing.describe(attack)):
        console.print(line, highlight=False, soft_wrap=True)
    for line in _ending(out, seconds):
        console.print(line, highlight=False, soft_wrap=True)
    return missed


def _configs(out: Path, epochs: int | None) -> dict[str, TrainConfig]:
    return {
        name: TrainConfig(
            method=network.method,
            data=DATA,
            student=network.architecture,
            teacher=out / network.teacher / "best.safetensors" if network.teacher else None,
            epochs=epochs,
            seed=SEED,
            device=DEVICE,
            out=out / name,
        )
        for name, network in NETWORKS.items()
    }


def _table(networks: dict[str, dict[str, Any]]) -> Table:
    test = next(iter(networks.values()))["suite"]
    table = Table(title=f"accuracy in % on {test['n']} test digits, eps {test['eps']:g}")
    for column in ("network", "architecture"):
        table.add_column(column)
    for column in ("parameters", *TITLES.values()):
        table.add_column(column, justify="right")
    for name, values in networks.items():
        accuracies = (f"{values['accuracy'][key]:.1f}" for key in TITLES)
        table.add_row(
            NETWORKS[name].title, values["architecture"], f"{values['parameters']:,}", *accuracies
        )
    return table


def _caption(suite: dict[str, Any]) -> tuple[str, ...]:
    pgd = suite["attacks"][SHOWN["pgd20"]].partition(": ")[2]
    return (
        f"{suite['norm']}, pixels in \\[0, 1]; PGD-20: {pgd}; one seed, and the networks differ in "
        "size: nothing is claimed between TRADES and RSLAD.",
        "",
    )


def _ending(out: Path, seconds: float) -> tuple[str, ...]:
    command, best = "fastard", "best.safetensors"
    if shutil.which(command) is None:
        command = f"{demo_folder.relative(sys.executable)} -m fastard"
    student = NETWORKS["rslad"]
    return (
        "",
        escape(
            f"{seconds:.0f} s in all. Written to {out}: {demo_folder.RECORD}, curves.png, "
            f"examples.png and the runs {', '.join(f'{name}/' for name in NETWORKS)} with their "
            "checkpoints."
        ),
        "Next:",
        escape(f"  {command} evaluate --checkpoint {out / 'rslad' / best}"),
        escape(
            f"  {command} train --method {student.method} --student {student.architecture} "
            f"--teacher {out / 'trades' / best} --seed 1"
        ),
    )


def _complain(sentence: str, status: int) -> int:
    Console(stderr=True).print(escape(sentence), style="red", highlight=False, soft_wrap=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
