"""The command line: ``fastard train``, ``evaluate``, ``export``, ``teachers``, ``bench``
and ``doctor``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

import fastard
from fastard.bench import BenchConfig, bench
from fastard.evaluate import EvaluateConfig, evaluate_checkpoint
from fastard.export import ExportConfig, export
from fastard.teachers import TeachersConfig, select_teachers
from fastard.train import TrainConfig, train

# What a user's input can cause; anything else is a defect of ours and keeps its traceback.
USER_ERRORS = (ValueError, OSError, FloatingPointError)

# What an interrupted command leaves to go on from.
GOES_ON: dict[type, str] = {
    TrainConfig: "; --resume continues the run from its last saved state",
    EvaluateConfig: "; what was found is kept, and the same command goes on",
}

DESCRIPTION = """Adversarial training and robust distillation with compiled kernels.

Examples:
  fastard train --method trades --data digits --out runs/teacher
  fastard train --method trades --data digits --eps 8/255 --out runs/weaker
  fastard train --method rslad-batchmean --data digits --teacher runs/teacher/best.safetensors
  fastard evaluate --checkpoint runs/teacher/best.safetensors
  fastard export --checkpoint runs/teacher/best.safetensors --format onnx --out teacher.onnx
  fastard teachers select --teacher a.safetensors --teacher b.safetensors --teacher c.safetensors
  fastard bench --suite quick
  fastard doctor"""


@dataclass
class DoctorConfig:
    """Say which versions and backends are in use and check every op against its reference."""


Command = (
    Annotated[TrainConfig, tyro.conf.subcommand("train")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[ExportConfig, tyro.conf.subcommand("export")]
    | Annotated[TeachersConfig, tyro.conf.subcommand("teachers")]
    | Annotated[BenchConfig, tyro.conf.subcommand("bench")]
    | Annotated[DoctorConfig, tyro.conf.subcommand("doctor")]
)


_FRACTION = re.compile(r"(--(?:eps|alpha|val-alpha)=)?(\d+\.?\d*)/(\d+\.?\d*)")
_RADII = ("--eps", "--alpha", "--val-alpha")


def _with_numbers(argv: Sequence[str]) -> list[str]:
    """Radii and step sizes as numbers where they are written as papers do: 8/255."""
    found: list[str] = []
    for at, word in enumerate(argv):
        fraction = _FRACTION.fullmatch(word)
        if fraction and (fraction[1] or (at and argv[at - 1] in _RADII)) and float(fraction[3]):
            word = f"{fraction[1] or ''}{float(fraction[2]) / float(fraction[3])!r}"
        found.append(word)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    0, 1 where `bench` finds something slower, 2 for bad input, 130 when interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # What keeps torchrun from taking a flag of ours, such as --n, for a short form of its own.
    if argv[:1] == ["--"]:
        argv = argv[1:]
    if argv == ["--version"]:
        print(f"fastard {fastard.__version__}")
        return 0
    command = tyro.cli(
        Command,
        prog="fastard",
        description=DESCRIPTION,
        args=_with_numbers(argv),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    try:
        return _run(command)
    except KeyboardInterrupt:
        _complain(f"interrupted{GOES_ON.get(type(command), '')}")
        return 130
    except USER_ERRORS as error:
        if os.environ.get("FASTARD_DEBUG") == "1":
            raise
        _complain(f"error: {error}")
        return 2


def _run(command: Command) -> int:
    if isinstance(command, TrainConfig):
        train(command, Console())
        return 0
    if isinstance(command, EvaluateConfig):
        evaluate_checkpoint(command, Console())
        return 0
    if isinstance(command, ExportConfig):
        export(command, Console())
        return 0
    if isinstance(command, TeachersConfig):
        select_teachers(command, Console())
        return 0
    if isinstance(command, BenchConfig):
        return bench(command, Console())
    from fastard import doctor

    return doctor.main()


def _complain(sentence: str) -> None:
    Console(stderr=True).print(escape(sentence), style="red", highlight=False, soft_wrap=True)
