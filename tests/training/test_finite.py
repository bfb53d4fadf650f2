"""Weights that are no numbers never reach a file; the error says what the files hold."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from small_runs import quick
from torch import nn

from fastard.train import Hook, Trainer, train
from fastard.training.finite import all_finite


class Spoiler(Hook):
    """Puts NaN where one step of one epoch ends."""

    def __init__(self, epoch, step, pick):
        self.place, self.pick = (epoch, step), pick

    def on_step_end(self, trainer, step):
        if (step.epoch, step.step) == self.place:
            with torch.no_grad():
                self.pick(trainer).view(-1)[0] = math.nan


def weight(trainer):
    return next(trainer.student.parameters())


def statistic(trainer):
    return next(b for b in trainer.student.buffers() if b.is_floating_point())


def averaged(trainer):
    return next(trainer.average.averaged.parameters())


def momentum(trainer):
    return next(trainer.stepper.momentum())


@pytest.mark.parametrize("pick", [weight, statistic, averaged, momentum])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, pick):
    out = tmp_path / "run"
    with pytest.raises(FloatingPointError) as raised:
        train(quick(out, average="ema"), hooks=[Spoiler(2, 4, pick)])
    assert str(raised.value) == (
        "the weights are not finite after step 4 of epoch 2; training stopped, of the checkpoints "
        f"{out / 'last.safetensors'} holds epoch 1 and {out / 'state.pt'} the end of epoch 1."
    )
    state = torch.load(out / "state.pt")
    assert (state["epoch"], state["step"]) == (1, 0)
    assert all(t.isfinite().all() for t in state["student"].values())
    assert all(t.isfinite().all() for t in load_file(out / "last.safetensors").values())
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_state_within_an_epoch_is_named(tmp_path):
    out = tmp_path / "run"
    said = r"after step 2 of epoch 1; .* no epoch was saved and .*state.pt step 1 of epoch 1"
    with pytest.raises(FloatingPointError, match=said):
        train(quick(out, save_every_steps=1), hooks=[Spoiler(1, 2, weight)])
    assert torch.load(out / "state.pt")["step"] == 1


def test_a_learning_rate_beyond_all_bounds_leaves_a_finite_run(tmp_path):
    out = tmp_path / "run"
    settings = {"method": "natural", "train_n": 64, "lr": 1e30, "epochs": 4}
    with pytest.raises(FloatingPointError, match="training stopped, of the checkpoints"):
        train(quick(out, **settings))
    for path in out.glob("*.safetensors"):
        assert all(t.isfinite().all() for t in load_file(path).values())
    if (out / "state.pt").exists():
        assert all_finite(Trainer(quick(out, **settings, resume=True)).student)


def test_networks_without_numbers_are_finite():
    assert all_finite(nn.ReLU())
    network = nn.BatchNorm1d(2)
    assert all_finite(network)
    network.running_var[0] = math.inf
    assert not all_finite(nn.ReLU(), network)
