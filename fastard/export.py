"""A trained network in a format that other programs read, checked after it was written."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from fastard import models
from fastard.files import atomic_path
from fastard.kinds import unknown
from fastard.progress import QUIET

# Logits of other kernels than ours, relative to the largest of them.
TOLERANCE = 1e-4
# Traced with one of these, checked with all: the size of a batch is free.
BATCHES = (2, 1, 5)
Run = Callable[[Tensor], Tensor]


@dataclass(kw_only=True)
class ExportConfig:
    """Write a checkpoint's network, its normaliser included, in a format that others read."""

    checkpoint: Path
    """Checkpoint of `fastard train`, or any .safetensors, .pt or .pth file."""
    format: str = "safetensors"
    """safetensors (weights), torchscript, exported (torch.export) or onnx."""
    out: Path | None = None
    """File to write; beside the checkpoint, under its name or NAME.export, when left out."""
    model: str | None = None
    """Architecture of a checkpoint that does not name its own, such as resnet18."""
    num_classes: int | None = None
    """Classes of a checkpoint that does not say how many it has; 10 when left out."""


@dataclass(frozen=True)
class Format:
    """A format: the suffix of its files, who writes one, and who makes it answer logits."""

    suffix: str
    write: Callable[[nn.Module, Tensor, Path, dict[str, Any]], None]
    read: Callable[[Path], Run]
    needs: tuple[str, ...] = ()


def export(config: ExportConfig, console: Console = QUIET) -> Path:
    """Writes the network in eval mode, on the CPU in fp32, and returns the file.

    It takes images [N, C, H, W] in [0, 1], any N, and answers logits. The file is read back by its
    own runtime, and kept only where the logits of random images agree with the checkpoint's to
    1e-4 of the largest; what is there already is replaced as a whole or stays.

    Raises ValueError for an unknown format, a suffix of another one, a package that is missing, or
        logits that differ; FileNotFoundError where there is no checkpoint.
    """
    if config.format not in FORMATS:
        raise unknown("format", config.format, FORMATS)
    form = FORMATS[config.format]
    out = config.out or config.checkpoint.with_suffix(form.suffix)
    if config.out is None and out == config.checkpoint:
        out = config.checkpoint.with_suffix(f".export{form.suffix}")
    if out.suffix != form.suffix:
        raise ValueError(f"out must end in {form.suffix} for {config.format}, but is {out}.")
    if out.resolve() == config.checkpoint.resolve():
        raise ValueError(f"out must be another file than the checkpoint, but is {out}.")
    if missing := [name for name in form.needs if not _installed(name)]:
        raise ValueError(
            f"format {config.format!r} needs {' and '.join(missing)}, not installed here: "
            'pip install "fastard[export]".'
        )
    model, meta = models.load_checkpoint(
        config.checkpoint, name=config.model, num_classes=config.num_classes
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    shape = (meta["in_channels"], meta["image_size"], meta["image_size"])
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCHES[0], *shape, generator=generator)
    with atomic_path(out) as temporary:
        with warnings.catch_warnings():
            # Of the exporters about themselves; what matters is checked below.
            warnings.simplefilter("ignore")
            form.write(model, x, temporary, meta)
            run = form.read(temporary)
        worst = 0.0
        for batch in BATCHES:
            x = torch.rand(batch, *shape, generator=generator)
            distance = _distance(run(x), model, x)
            # So written, NaN is refused too; `max` would lose it.
            if not distance <= TOLERANCE:
                raise ValueError(
                    f"the logits of {out} must agree with the checkpoint's to {TOLERANCE:g} of the "
                    f"largest, but differ by {distance:.2g}; nothing was written."
                )
            worst = max(worst, distance)
    console.print(
        f"written to {out}: {config.format}, images {list(shape)} in [0, 1]; logits of batches of "
        f"{', '.join(map(str, sorted(BATCHES)))} differ by {worst:.1e} of the largest at most "
        f"(allowed: {TOLERANCE:g})",
        soft_wrap=True,
        highlight=False,
    )
    return out


def _distance(logits: Tensor, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected = model(x)
    if logits.shape != expected.shape:
        return float("inf")
    return float((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _write_safetensors(model: nn.Module, x: Tensor, path: Path, meta: dict[str, Any]) -> None:
    models.save(
        path,
        model,
        name=meta["architecture"],
        num_classes=meta["num_classes"],
        in_channels=meta["in_channels"],
        image_size=meta["image_size"],
        kwargs=meta["kwargs"],
        extra=meta["extra"],
    )


def _write_torchscript(model: nn.Module, x: Tensor, path: Path, meta: dict[str, Any]) -> None:
    with torch.no_grad():
        torch.jit.trace(model, x).save(str(path))


def _exported(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def _write_exported(model: nn.Module, x: Tensor, path: Path, meta: dict[str, Any]) -> None:
    torch.export.save(_exported(model, x), path)


def _write_onnx(model: nn.Module, x: Tensor, path: Path, meta: dict[str, Any]) -> None:
    torch.onnx.export(
        model,
        (x,),
        path,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )


def _read_module(load: Callable[[Path], Any]) -> Callable[[Path], Run]:
    def read(path: Path) -> Run:
        module = load(path)

        def run(x: Tensor) -> Tensor:
            with torch.no_grad():
                return module(x)

        return run

    return read


def _read_onnx(path: Path) -> Run:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


FORMATS = {
    "safetensors": Format(".safetensors", _write_safetensors, _read_module(models.load)),
    "torchscript": Format(
        ".pt", _write_torchscript, _read_module(lambda path: torch.jit.load(str(path)))
    ),
    "exported": Format(
        ".pt2", _write_exported, _read_module(lambda path: torch.export.load(path).module())
    ),
    "onnx": Format(".onnx", _write_onnx, _read_onnx, ("onnx", "onnxscript", "onnxruntime")),
}
