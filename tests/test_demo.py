"""The demo end to end after two epochs, what it replaces, and when it fails."""

from __future__ import annotations

import io
import json

import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from benchmarks import demo, demo_folder
from fastard import models


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a short demo, what it printed and its exit status."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    printed, threads = io.StringIO(), torch.get_num_threads()
    arguments = ["--out", str(out), "--epochs", "2", "--no-bounds"]
    status = demo.main(arguments, Console(file=printed, width=100))
    assert torch.get_num_threads() == threads
    return out, printed.getvalue(), status


def test_succeeds_and_prints_one_table(finished):
    out, printed, status = finished
    assert status == 0
    assert printed.count("┏") == 1
    for text in ("natural student", "TRADES teacher", "RSLAD student", "FGSM", "PGD-20"):
        assert text in printed
    assert "published / fastard" in printed
    assert f"evaluate --checkpoint {out / 'rslad' / 'best.safetensors'}" in printed


def test_record_holds_accuracies_and_surroundings(finished):
    record = json.loads((finished[0] / "demo.json").read_text())
    assert record["complete"] is True
    assert record["config"]["eps"] == 0.15
    assert record["config"]["test_images"] == 500
    assert record["config"]["epochs"] == 2
    assert set(record["networks"]) == {"natural", "trades", "rslad"}
    for network in record["networks"].values():
        assert set(network["accuracy"]) == {"clean", "fgsm", "pgd20"}
        assert all(0 <= value <= 100 for value in network["accuracy"].values())
        assert network["accuracy"]["pgd20"] <= network["accuracy"]["clean"]
    assert record["networks"]["trades"]["accuracy"]["clean"] > 30
    assert all(record["versions"].values())
    assert record["machine"]["threads"] == 1
    assert record["machine"]["isa"]


def test_both_loops_are_timed_and_agree(finished):
    attack = json.loads((finished[0] / "demo.json").read_text())["attack"]
    assert attack["batch"] == 128
    for name in ("fastard", "published"):
        assert len(attack["all_ms"][name]) == attack["repeats"]
        assert attack[f"{name}_ms"] == min(attack["all_ms"][name]) > 0
    assert attack["ratio"] == pytest.approx(attack["published_ms"] / attack["fastard_ms"], abs=2e-3)
    assert attack["pixels"] == 128 * 64
    assert attack["pixels_that_differ"] <= 0.01 * attack["pixels"]


@pytest.mark.parametrize("name", ["curves.png", "examples.png"])
def test_pictures_show_something(finished, name):
    picture = imread(finished[0] / name)
    assert min(picture.shape[:2]) > 300
    assert picture[..., :3].std() > 0.05


@pytest.mark.parametrize("run", ["natural", "trades", "rslad"])
def test_checkpoints_load(finished, run):
    model, meta = models.load_checkpoint(finished[0] / run / "best.safetensors")
    assert meta["extra"]["data"] == "digits"
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_nothing_half_written_stays(finished):
    assert not [path for path in finished[0].rglob("*") if ".tmp" in path.name]


@pytest.mark.parametrize("record", [None, "not JSON", "[]", '{"demo": "another"}'])
def test_foreign_folder_is_refused_untouched(tmp_path, capsys, record):
    (tmp_path / "natural").mkdir()
    (tmp_path / "natural" / "thesis.txt").write_text("mine")
    if record is not None:
        (tmp_path / "demo.json").write_text(record)
    before = sorted(tmp_path.rglob("*"))
    assert demo.main(["--out", str(tmp_path), "--epochs", "1"]) == 2
    complaint = capsys.readouterr().err.strip()
    assert "not a demo" in complaint
    assert "\n" not in complaint
    assert sorted(tmp_path.rglob("*")) == before
    if record is not None:
        assert (tmp_path / "demo.json").read_text() == record


def test_bad_epochs_cost_no_earlier_demo(tmp_path, capsys):
    demo_folder.prepare(tmp_path, ["rslad"])
    (tmp_path / "rslad").mkdir()
    assert demo.main(["--out", str(tmp_path), "--epochs", "0"]) == 2
    assert "epochs must be at least 1" in capsys.readouterr().err
    assert (tmp_path / "rslad").is_dir()


def test_earlier_demo_is_cleared_and_other_files_stay(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept.txt").write_text("kept")
    out = tmp_path / "demo"
    demo_folder.prepare(out, ["natural", "rslad"])
    (out / "natural").mkdir()
    (out / "natural" / "config.yaml").write_text("old")
    (out / "rslad").symlink_to(elsewhere)
    (out / "curves.png").write_bytes(b"old")
    (out / "notes.txt").write_text("mine")
    demo_folder.prepare(out, ["natural", "rslad"])
    assert sorted(path.name for path in out.iterdir()) == ["demo.json", "notes.txt"]
    assert json.loads((out / "demo.json").read_text())["complete"] is False
    assert (elsewhere / "kept.txt").read_text() == "kept"


def accuracies(natural, rslad, clean):
    return {"natural": {"pgd20": natural}, "rslad": {"pgd20": rslad, "clean": clean}}


@pytest.mark.parametrize(
    ("values", "missed"),
    [
        ((20.0, 65.0, 95.0), []),
        ((20.2, 65.0, 95.0), ["natural student PGD-20"]),
        ((5.2, 64.8, 94.8), ["RSLAD student PGD-20", "RSLAD student clean"]),
        ((float("nan"),) * 3, ["natural student PGD-20", "RSLAD student PGD-20", "clean"]),
    ],
)
def test_bounds(values, missed):
    sentences = [bound.missed(accuracies(*values)) for bound in demo.BOUNDS]
    said = [sentence for sentence in sentences if sentence]
    assert len(said) == len(missed)
    assert all(wanted in sentence for wanted, sentence in zip(missed, said, strict=True))


@pytest.mark.parametrize(("flags", "status"), [([], 1), (["--no-bounds"], 0)])
def test_missed_bounds_decide_the_exit_status(monkeypatch, tmp_path, capsys, flags, status):
    monkeypatch.setattr(demo, "run", lambda *_: ["RSLAD student clean accuracy is 3.0 %"])
    assert demo.main(["--out", str(tmp_path), *flags]) == status
    complaint = capsys.readouterr().err
    assert ("missed its bounds: RSLAD" in complaint) is bool(status)
