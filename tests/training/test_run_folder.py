"""A run's files: whole on a full disk, locked while it is at work, and what they hold."""

from __future__ import annotations

import base64
import errno
import os
import resource
import signal
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_runs import quick
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from fastard import models
from fastard.train import Hook, TrainConfig, Trainer, train
from fastard.training.figures import describe, overfitting
from fastard.training.folder import RunFolder
from fastard.training.lock import locked


class FullDisk(Hook):
    """Fills the disk when epoch 1 is over."""

    def __init__(self, fill):
        self.fill = fill

    def on_epoch_end(self, trainer, metrics):
        self.fill()


def no_renames(monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: monkeypatch.setattr(os, "replace", full)


def no_room(monkeypatch):
    """A real limit of the system: no file may grow beyond 2000 bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


@pytest.fixture
def limits():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    ("make", "reason"), [(no_renames, "No space left on device"), (no_room, "File too large")]
)
def test_a_full_disk_stops_with_a_sentence(tmp_path, monkeypatch, limits, make, reason):
    out = tmp_path / "run"
    with pytest.raises(
        OSError, match=rf"cannot write .*: .*{reason}.*; training stopped"
    ) as raised:
        train(quick(out), hooks=[FullDisk(make(monkeypatch))])
    assert "\n" not in str(raised.value)
    assert "last.safetensors, best.safetensors, state.pt are whole" in str(raised.value)
    assert all(t.isfinite().all() for t in load_file(out / "last.safetensors").values())
    assert torch.load(out / "state.pt")["epoch"] == 1
    assert not list(out.glob("*.tmp*")) and not list(out.glob(".*.tmp*"))


def test_a_folder_that_became_unwritable_is_named(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "gone")
    with pytest.raises(OSError, match="cannot write .*config.yaml: .*; training stopped, no check"):
        folder.write_config({})


def test_two_runs_at_work_in_one_folder_are_refused(tmp_path):
    first = Trainer(quick(tmp_path / "run"))
    steps = first.steps()
    next(steps)
    with pytest.raises(FileExistsError, match=rf"another run \(process {os.getpid()}\) is at work"):
        train(TrainConfig(out=tmp_path / "run", resume=True))
    steps.close()
    assert not (tmp_path / "run" / ".lock").exists()


def test_one_trainer_after_another_in_one_folder_is_refused(tmp_path):
    out = tmp_path / "run"
    first, second = Trainer(quick(out, epochs=1)), Trainer(quick(out, epochs=1))
    first.fit()
    with pytest.raises(FileExistsError, match="holds a run already"):
        second.fit()
    changes = {"out": out, "resume": True, "allow_changes": True, "epochs": 2}
    changes["no_tensorboard"] = True
    first, second = (Trainer(TrainConfig(**changes)) for _ in range(2))
    first.fit()
    before = (out / "state.pt").read_bytes()
    with pytest.raises(FileExistsError, match="another run has written .*state.pt since"):
        second.fit()
    assert (out / "state.pt").read_bytes() == before


@pytest.mark.parametrize("write", ["write_state", "write_weights"])
def test_a_checkpoint_that_finds_no_room_says_so(tmp_path, limits, monkeypatch, write):
    folder = RunFolder(tmp_path)
    network = models.build("small_cnn", image_size=8)
    no_room(monkeypatch)()
    with pytest.raises(OSError, match=rf"cannot write {tmp_path}/.*: .*File too large.*; training"):
        if write == "write_state":
            folder.write_state({"weights": torch.zeros(10000)})
        else:
            folder.write_weights(folder.last, network, name="small_cnn", image_size=8)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_on_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    said = "cannot write .*tensorboard: No space left on device; training stopped, last"
    with pytest.raises(OSError, match=said) as raised:
        train(quick(tmp_path / "run", epochs=1, no_tensorboard=False))
    assert "\n" not in str(raised.value)


def test_a_lock_left_behind_by_a_killed_process_holds_nobody(tmp_path):
    (tmp_path / ".lock").write_text("12345")
    with locked(tmp_path / ".lock"):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    return train(quick(tmp_path_factory.mktemp("runs") / "run", no_tensorboard=False))


def test_tensorboard_holds_every_number_and_the_examples(logged):
    events = EventAccumulator(str(logged.out / "tensorboard"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        events.Reload()
    for name in ("loss", "val_clean", "val_robust", "attack_share", "lr"):
        found = [(event.step, event.value) for event in events.Scalars(f"epoch/{name}")]
        expected = [(row["epoch"], pytest.approx(row[name], rel=1e-5)) for row in logged.metrics]
        assert found == expected
    steps = events.Scalars("step/loss")
    assert [event.step for event in steps] == list(range(1, 9))
    mean = sum(event.value for event in steps[:4]) / 4
    assert mean == pytest.approx(logged.metrics[0]["loss"], rel=1e-5)
    images = events.Images("clean, adversarial, difference")
    assert [image.step for image in images] == [1, 2]
    assert (images[0].width, images[0].height) == (8 * 9 + 1, 3 * 9 + 1)


def test_the_examples_stay_in_the_ball(logged):
    picture = Image.open(logged.out / "examples.png").convert("L")
    grid = torch.from_numpy(np.array(picture)).float() / 255
    cell = len(grid) * 9 // 28
    clean, attacked = grid[:cell], grid[cell : 2 * cell]
    largest = (clean - attacked).abs().max().item()
    assert 0 < largest <= logged.config.eps + 2 / 255


def test_the_summary_is_one_page_with_numbers_and_pictures(logged):
    page = (logged.out / "summary.html").read_text()
    for row in logged.metrics:
        assert f"{100 * row['val_robust']:.2f} %" in page
        assert f"{row['loss']:.4g}" in page
    for name in ("curves.png", "examples.png"):
        assert base64.b64encode((logged.out / name).read_bytes()).decode() in page
    assert "http" not in page and "Robust overfitting: robust, val: best" in page
    assert f"<td>batch_size</td><td>{logged.config.batch_size}" in page


def test_robust_overfitting_is_said():
    rows = [{"epoch": 1, "val_robust": 0.5}, {"epoch": 2, "val_robust": 0.42}]
    gap = overfitting(rows, rows[0])
    assert describe(gap) == "robust, val: best 50.0 % (epoch 1), last 42.0 %, gap 8.0"
    assert overfitting([{"epoch": 1}], {}) == {}
