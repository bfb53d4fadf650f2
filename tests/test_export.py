"""`fastard export`: every format answers the checkpoint's logits, or nothing is written."""

from __future__ import annotations

import dataclasses
import importlib.util
from math import nan
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fastard import cli, models
from fastard.export import FORMATS, ExportConfig, export

MEAN, STD = (0.3,), (0.2,)
has_onnx = all(importlib.util.find_spec(name) for name in FORMATS["onnx"].needs)
needs_onnx = pytest.mark.skipif(
    not has_onnx, reason='onnx is not installed: pip install "fastard[export]"'
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A normalised small_cnn whose batch statistics are not those of a fresh network."""
    torch.manual_seed(0)
    inner = models.build("small_cnn", image_size=8, width=4)
    inner(torch.rand(16, 1, 8, 8))
    path = tmp_path / "best.safetensors"
    model = models.Normalized(inner, MEAN, STD)
    extra = {"data": "digits"}
    models.save(path, model, name="small_cnn", image_size=8, kwargs={"width": 4}, extra=extra)
    return path


def logits_of(form: str, path: Path, x: torch.Tensor) -> torch.Tensor:
    """By the format's own reader, as a user would call it."""
    if form == "safetensors":
        return models.load(path)(x)
    if form == "torchscript":
        return torch.jit.load(str(path))(x)
    if form == "exported":
        return torch.export.load(path).module()(x)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    (given,), (answered,) = session.get_inputs(), session.get_outputs()
    assert given.shape[1:] == [1, 8, 8]
    return torch.from_numpy(session.run([answered.name], {given.name: x.numpy()})[0])


@pytest.mark.parametrize(
    "form", ["safetensors", "torchscript", "exported", pytest.param("onnx", marks=needs_onnx)]
)
def test_a_format_answers_the_same_logits_for_any_batch(checkpoint: Path, form: str) -> None:
    out = checkpoint.with_name(f"student{FORMATS[form].suffix}")
    console = Console(record=True, width=200)
    assert export(ExportConfig(checkpoint=checkpoint, format=form, out=out), console) == out
    model = models.load(checkpoint)
    for batch in (1, 3, 17):
        x = torch.rand(batch, 1, 8, 8)
        with torch.no_grad():
            found = logits_of(form, out, x)
            torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-4)
    assert f"written to {out}: {form}" in console.export_text().replace("\n", "")
    assert sorted(p.name for p in out.parent.iterdir()) == sorted([checkpoint.name, out.name])


def test_safetensors_keep_what_the_checkpoint_says(checkpoint: Path) -> None:
    out = checkpoint.with_name("copy.safetensors")
    export(ExportConfig(checkpoint=checkpoint, out=out))
    assert models.load_checkpoint(out)[1] == models.load_checkpoint(checkpoint)[1]


@pytest.mark.parametrize("classes", [None, 100])
def test_a_foreign_state_dict(tmp_path: Path, classes: int | None) -> None:
    file = tmp_path / "cnn.pth"
    torch.save(models.build("cnn_a", classes or 10).state_dict(), file)
    config = ExportConfig(checkpoint=file, model="cnn_a", format="torchscript")
    config.num_classes = classes
    out = export(config)
    x = torch.rand(2, 3, 32, 32)
    expected = models.load(file, name="cnn_a", num_classes=classes)(x)
    torch.testing.assert_close(torch.jit.load(str(out))(x), expected)
    assert expected.shape == (2, classes or 10)


def test_logits_that_differ_leave_no_file(checkpoint: Path, monkeypatch) -> None:
    form = FORMATS["torchscript"]
    out = checkpoint.with_suffix(".pt")
    out.write_bytes(b"an earlier export")

    def other(model, x, path, meta) -> None:
        weight = next(model.parameters())
        kept = weight.clone()
        weight.mul_(1.1)
        form.write(model, x, path, meta)
        weight.copy_(kept)

    changed = type(form)(form.suffix, other, form.read)
    monkeypatch.setitem(FORMATS, "torchscript", changed)
    with pytest.raises(ValueError, match="must agree .* but differ by .*; nothing was written"):
        export(ExportConfig(checkpoint=checkpoint, format="torchscript"))
    assert out.read_bytes() == b"an earlier export"
    assert sorted(p.name for p in out.parent.iterdir()) == ["best.pt", "best.safetensors"]


def test_refusals(checkpoint: Path, monkeypatch, capsys) -> None:
    def refused(message: str, **options) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            export(ExportConfig(**{"checkpoint": checkpoint, **options}))

    refused(r"unknown format 'onx' \(did you mean 'onnx'\?\)", format="onx")
    refused("out must end in .pt2 for exported, but is x.pt", format="exported", out=Path("x.pt"))
    refused("out must be another file than the checkpoint", out=checkpoint)
    refused("no checkpoint at none.pth", checkpoint=Path("none.pth"), format="torchscript")
    monkeypatch.setattr("fastard.export._installed", lambda name: name == "onnx")
    refused(r"needs onnxscript and onnxruntime.*pip install \"fastard\[export\]\"", format="onnx")
    assert [p.name for p in checkpoint.parent.iterdir()] == [checkpoint.name]
    arguments = ["export", "--checkpoint", str(checkpoint), "--format", "torchscripts"]
    assert cli.main(arguments) == 2
    assert "did you mean 'torchscript'?" in capsys.readouterr().err


def test_the_command(checkpoint: Path, capsys) -> None:
    out = checkpoint.with_name("s.pt2")
    arguments = ["--checkpoint", str(checkpoint), "--format", "exported", "--out", str(out)]
    assert cli.main(["export", *arguments]) == 0
    assert out.exists()
    assert "written to" in capsys.readouterr().out


def test_logits_that_are_no_numbers_are_refused(checkpoint: Path, monkeypatch) -> None:
    form = FORMATS["torchscript"]
    spoilt = dataclasses.replace(form, read=lambda path: lambda x: torch.full((len(x), 10), nan))
    monkeypatch.setitem(FORMATS, "torchscript", spoilt)
    out = checkpoint.with_name("student.pt")
    with pytest.raises(ValueError, match="must agree .* but differ by nan; nothing was written"):
        export(ExportConfig(checkpoint=checkpoint, format="torchscript", out=out))
    assert not out.exists()
