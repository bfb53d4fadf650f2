"""Runs that were killed, stopped or left, and end with the bits of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_runs import assert_same_weights, quick, without_times

from fastard import methods
from fastard.methods.registry import METHODS
from fastard.train import TrainConfig, Trainer, train
from fastard.training.config_file import to_dict

SETTINGS = {"epochs": 8, "average": "ema", "schedule": "onecycle", "save_every_steps": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(quick(tmp_path_factory.mktemp("runs") / "whole", **SETTINGS))


def started(out):
    """The same run in a process of its own, which has saved a state."""
    config = out.parent / f"{out.name}.yaml"
    values = {k: v for k, v in to_dict(quick(out, **SETTINGS)).items() if v is not None}
    config.write_text(json.dumps(values))  # JSON is YAML.
    command = [sys.executable, "-m", "fastard", "train", "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    give_up = time.monotonic() + 300
    while not (out / "state.pt").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < give_up, "no state was saved"
        time.sleep(0.01)
    return process


def resume(out, **settings):
    return train(TrainConfig(out=out, resume=True, no_tensorboard=True, **settings))


def assert_equal_runs(whole, other):
    assert without_times(whole.metrics) == without_times(other.metrics)
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_weights(whole.out, other.out, name)


def test_a_killed_run_resumes_to_the_same_bits(whole, tmp_path):
    process = started(tmp_path / "run")
    delay = random.SystemRandom().uniform(0, 0.5)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"it ended within {delay} s"
    assert_equal_runs(whole, resume(tmp_path / "run"))


def test_sigterm_saves_and_succeeds(whole, tmp_path):
    process = started(tmp_path / "run")
    process.terminate()
    printed, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (0, "")
    assert "stopped by SIGTERM after" in printed and "--resume" in printed
    state = torch.load(tmp_path / "run" / "state.pt")
    assert state["epoch"] < 8
    assert_equal_runs(whole, resume(tmp_path / "run"))


@pytest.mark.parametrize(
    "settings",
    [
        {"average": "swa", "average_start": 1, "schedule": "cyclic"},
        {"awp_gamma": 0.01, "awp_warmup": 1, "no_decay_norm_bias": True, "clip_grad": 1.0},
    ],
)
def test_every_step_can_be_resumed_from(tmp_path, settings):
    whole = train(quick(tmp_path / "whole", **settings))
    out, position = tmp_path / "parts", 0
    config = quick(out, **settings)
    while position < 8:
        trainer = Trainer(config)
        assert 4 * trainer.epoch + trainer.step == position
        steps = trainer.steps()
        next(steps)
        steps.close()  # Which saves.
        position += 1
        config = TrainConfig(out=out, resume=True, no_tensorboard=True)
    assert_equal_runs(whole, resume(out))


def test_states_are_saved_by_time(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Trainer, "save_state", lambda self: saved.append(self.step))
    train(quick(tmp_path / "a", save_every_minutes=1e-9, epochs=1))
    assert saved == [1, 2, 3]
    train(quick(tmp_path / "b", save_every_minutes=0, epochs=1))
    train(quick(tmp_path / "c", save_every_steps=2, epochs=1))
    assert saved == [1, 2, 3, 2]


def test_a_changed_resumption_lists_every_difference(tmp_path):
    first = train(quick(tmp_path / "run", epochs=1))
    changes = {"epochs": 2, "weight_decay": 0.25, "options": {"beta": 3.0}}
    with pytest.raises(ValueError, match="--allow-changes") as raised:
        resume(first.out, **changes)
    for part in ("epochs was 1, now 2", "weight_decay was 0.0005, now 0.25", "'beta': 3.0"):
        assert part in str(raised.value)
    trainer = Trainer(TrainConfig(out=first.out, resume=True, allow_changes=True, **changes))
    assert trainer.stepper.sgd.param_groups[0]["weight_decay"] == 0.25
    assert trainer.method.options.beta == 3.0
    assert [row["epoch"] for row in trainer.fit().metrics] == [1, 2]
    # What was changed is what the run is now.
    assert Trainer(TrainConfig(out=first.out, resume=True)).config.weight_decay == 0.25
    for changes in ({"method": "natural"}, {"student": "small_cnn-8"}):
        (name,) = changes
        with pytest.raises(ValueError, match=f"{name} must stay the same"):
            resume(first.out, allow_changes=True, **changes)


def test_a_changed_file_is_a_changed_setting(tmp_path):
    first = train(quick(tmp_path / "run", epochs=1, clip_grad=1.0, channels_last=True))
    # Both are what a new run would have.
    file = tmp_path / "other.yaml"
    file.write_text("clip_grad: null\nchannels_last: false\n")
    with pytest.raises(ValueError, match="channels_last was True, now False") as raised:
        resume(first.out, config=file)
    assert "clip_grad was 1.0, now None" in str(raised.value)
    # The run's own file is no other place to change it unseen.
    own = first.out / "config.yaml"
    own.write_text(own.read_text().replace("momentum: 0.9", "momentum: 0.5"))
    with pytest.raises(ValueError, match=r"than config.yaml names: momentum was 0.9, now 0.5"):
        resume(first.out)
    allowed = TrainConfig(out=first.out, resume=True, allow_changes=True)
    assert Trainer(allowed).config.momentum == 0.5


def test_what_a_state_depends_on_cannot_be_changed(tmp_path):
    out = tmp_path / "run"
    for step in Trainer(quick(out)).steps():
        if (step.epoch, step.step) == (1, 2):
            break
    allowed = {"out": out, "resume": True, "allow_changes": True, "no_tensorboard": True}
    with pytest.raises(ValueError, match="no_decay_norm_bias must stay the same in the resumed"):
        Trainer(TrainConfig(**allowed, no_decay_norm_bias=True))
    with pytest.raises(ValueError, match="the number of teachers must stay the same"):
        Trainer(TrainConfig(**allowed, teacher=("a.pt",)))
    for name, value in {"batch_size": 128, "train_n": 128, "val": 50}.items():
        said = f"{name} may change at an epoch's end only, but .*state.pt is at step 2 of an epoch"
        with pytest.raises(ValueError, match=said):
            Trainer(TrainConfig(**allowed, **{name: value}))
    assert [r["epoch"] for r in resume(out).metrics] == [1, 2]
    again = Trainer(TrainConfig(**allowed, batch_size=128, train_n=128, epochs=3))
    assert [step.samples for step in again.steps()] == [128]


def test_a_state_of_another_run_is_refused(tmp_path):
    for method in ("trades", "natural"):
        train(quick(tmp_path / method, method=method, epochs=1))
    (tmp_path / "natural" / "state.pt").replace(tmp_path / "trades" / "state.pt")
    with pytest.raises(ValueError, match="one of another: method natural"):
        resume(tmp_path / "trades")


# Methods with a state of their own: a helper that is trained along, a perturbation that is
# replayed, an average of old weights, loss weights that move, a pass that is still due.
@pytest.mark.parametrize("method", ["lbgat", "free", "saad", "b-mtard", "rice"])
def test_a_method_s_own_state_is_resumed(whole, tmp_path, method):
    teachers = (str(whole.out / "last.safetensors"),)
    kind = METHODS[methods.preset(method).method]
    settings = {"method": method, "teacher": teachers * kind.least_teachers}
    settings |= {"train_n": 128, "val": 20}
    straight = train(quick(tmp_path / "whole", **settings))
    for step in Trainer(quick(tmp_path / "parts", **settings)).steps():
        if (step.epoch, step.step) == (2, 1):
            break
    assert_equal_runs(straight, resume(tmp_path / "parts"))
