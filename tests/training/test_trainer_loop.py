"""The trainer in one's own loop, its hooks, and what it trains with."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from small_runs import assert_same_weights, quick, without_times
from torch import nn

from fastard import data, methods, models
from fastard.methods.natural import Natural
from fastard.methods.trades import TRADES
from fastard.train import Hook, TrainConfig, Trainer, train
from fastard.training.folder import RunFolder


class Journal(Hook):
    """Writes down what it is told."""

    def __init__(self):
        self.told = []

    def on_train_start(self, trainer):
        self.told.append("start")

    def on_epoch_start(self, trainer, epoch):
        self.told.append(f"epoch {epoch}")

    def on_step_end(self, trainer, step):
        self.told.append(f"step {step.epoch}.{step.step}/{step.steps}")

    def on_epoch_end(self, trainer, metrics):
        assert (trainer.run.path / "last.safetensors").exists()
        self.told.append(f"end {metrics['epoch']}")

    def on_train_end(self, trainer):
        self.told.append("over")


def test_hooks_are_told_in_order(tmp_path):
    journal = Journal()
    train(quick(tmp_path / "run"), hooks=[journal])
    steps = [[f"step {epoch}.{step}/4" for step in range(1, 5)] for epoch in (1, 2)]
    assert journal.told == [
        "start", "epoch 1", *steps[0], "end 1", "epoch 2", *steps[1], "end 2", "over",
    ]  # fmt: skip


def test_a_hook_can_end_the_run(tmp_path):
    class Enough(Hook):
        def on_step_end(self, trainer, step):
            if step.step == 3:
                trainer.stop.ask("enough")

    result = Trainer(quick(tmp_path / "run"), hooks=[Enough()]).fit()
    assert (result.stopped, result.metrics) == ("enough", [])
    whole = train(quick(tmp_path / "whole"))
    resumed = train(TrainConfig(out=tmp_path / "run", resume=True, no_tensorboard=True))
    assert resumed.stopped is None
    assert_same_weights(whole.out, resumed.out)


def test_own_loop_equals_fit(tmp_path):
    fitted = train(quick(tmp_path / "fit"))
    trainer, seen = Trainer(quick(tmp_path / "loop")), []
    for step in trainer.steps():
        seen.append(step)
        assert step.logs["loss"].dim() == 0 and step.samples == 64
    assert [(s.epoch, s.step) for s in seen] == [(e, s) for e in (1, 2) for s in (1, 2, 3, 4)]
    rows = [s.metrics for s in seen if s.metrics is not None]
    assert without_times(rows) == without_times(fitted.metrics)
    assert trainer.result().metrics == rows
    losses = torch.stack([s.logs["loss"].double() for s in seen[:4]])
    assert losses.mean().item() == pytest.approx(rows[0]["loss"])
    assert_same_weights(fitted.out, tmp_path / "loop")


def test_a_loop_that_is_left_goes_on_from_there(tmp_path):
    whole = train(quick(tmp_path / "whole"))
    trainer = Trainer(quick(tmp_path / "left"))
    for step in trainer.steps():
        if (step.epoch, step.step) == (2, 2):
            break
    taken = shutil.copytree(tmp_path / "left", tmp_path / "same trainer")
    trainer.run = RunFolder(taken)
    assert trainer.run.read_state() is not None  # Only who knows the state may go on from it.
    trainer.outcome.run = trainer.run
    assert_same_weights(whole.out, trainer.fit().out)
    resumed = Trainer(TrainConfig(out=tmp_path / "left", resume=True, no_tensorboard=True))
    assert (resumed.epoch, resumed.step) == (1, 2)
    result = resumed.fit()
    assert without_times(result.metrics) == without_times(whole.metrics)
    assert_same_weights(whole.out, result.out)


def test_steps_are_those_of_a_loop_by_hand(tmp_path):
    config = quick(
        tmp_path / "run",
        method="natural",
        schedule="cyclic",
        lr=0.2,
        no_decay_norm_bias=True,
        clip_grad=1.0,
        epochs=1,
    )
    trainer = Trainer(config)
    student = copy.deepcopy(trainer.student).train()
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in student.parameters() if p.dim() > 1]},
            {"params": [p for p in student.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=0.0,
        momentum=0.9,
        weight_decay=trainer.config.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.0, 0.2, 2, cycle_momentum=False)
    order = torch.Generator().manual_seed(0)
    for x, y, *_ in trainer.splits.train.batches(64, shuffle=True, generator=order):
        optimizer.zero_grad()
        F.cross_entropy(student(x), y).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    trainer.fit()
    for key, value in load_file(tmp_path / "run" / "last.safetensors").items():
        torch.testing.assert_close(value, student.state_dict()[key], rtol=1e-5, atol=1e-6)


def test_a_replayed_batch_steps_as_often(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(Natural, "replays", property(lambda self: 3))
    monkeypatch.setattr(Natural, "after_backward", lambda self: calls.append(grads(self)))

    def grads(method):
        return all(p.grad is not None for p in method.student.parameters())

    steps = list(Trainer(quick(tmp_path / "run", method="natural", epochs=1)).steps())
    assert len(steps) == 4
    assert calls == [True] * 12


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"channels_last": True},
        {"awp_gamma": 0.01},
        {"average": "ema", "schedule": "onecycle"},
    ],
)
def test_ways_to_train(tmp_path, settings):
    losses = [
        step.logs["loss"].item() for step in Trainer(quick(tmp_path / "run", **settings)).steps()
    ]
    assert sum(losses[-2:]) < sum(losses[:2])


def test_the_training_pass_can_be_compiled(tmp_path, monkeypatch):
    compiled, original = [], torch.compile

    def by_aot(module):
        compiled.append(module)
        return original(module, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", by_aot)
    plain = train(quick(tmp_path / "plain", epochs=1))
    result = train(quick(tmp_path / "compiled", epochs=1, compile=True))
    assert len(compiled) == 1
    assert_same_weights(plain.out, result.out)


def test_what_is_averaged_is_what_is_saved_and_validated(tmp_path):
    trainer = Trainer(quick(tmp_path / "run", average="swa", average_start=1, epochs=3))
    snapshots = []
    for step in trainer.steps():
        if step.metrics:
            snapshots.append([p.detach().clone() for p in trainer.student.parameters()])
    saved = load_file(tmp_path / "run" / "last.safetensors")
    for (name, _), *parts in zip(trainer.student.named_parameters(), *snapshots, strict=True):
        torch.testing.assert_close(saved[name], torch.stack(parts).mean(0), rtol=1e-5, atol=1e-6)
        assert torch.equal(saved[name], trainer.validated.state_dict()[name])


def test_training_stops_when_nothing_gets_better(tmp_path):
    # Only BatchNorm's statistics move.
    result = train(quick(tmp_path / "run", lr=0.0, patience=2, epochs=30))
    assert [row["best"] for row in result.metrics[-3:]] == [True, False, False]
    assert len(result.metrics) < 30 and result.stopped is None
    again = train(TrainConfig(out=result.out, resume=True, no_tensorboard=True))
    assert again.metrics == result.metrics


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"average": "emma"}, "unknown average 'emma'"),
        ({"sgd": "fusd"}, r"unknown sgd 'fusd' \(did you mean 'fused'\?\)"),
        ({"peak": 1.0}, "peak must lie between 0 and 1, but is 1.0"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and below 1"),
        ({"clip_grad": 0.0}, "clip_grad must be above 0"),
        ({"seed": 2**64}, r"seed must be from 0 to 2\*\*63 - 1, but is 18446744073709551616"),
        ({"seed": -1}, "seed must be from 0"),
        (
            {"student": "mobilenetv2", "batch_size": 2, "train_n": 3},
            "batch_size must not leave a last batch of one image, of which mobilenetv2",
        ),
        ({"patience": 2, "val": 0}, "patience needs a validation"),
        ({"average": "swa", "average_start": 9}, "average_start must be at most the 2 epochs"),
        ({"awp_gamma": 0.1, "precision": "fp16"}, "awp_gamma must be 0 in fp16"),
        ({"teacher": ("a.pt",)}, "takes no teacher, but was given 1"),
        (
            {"method": "rslad", "teacher": ("a.pt", "b.pt")},
            "takes one teacher, but was given 2",
        ),
    ],
)
def test_bad_settings_are_one_sentence(tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        train(quick(tmp_path / "run", **settings))
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_labels_out_of_range_are_refused(tmp_path, monkeypatch):
    load = data.load

    def mislabelled(*args, **kwargs):
        splits = load(*args, **kwargs)
        splits.train.y[3] = 10
        return splits

    monkeypatch.setattr(data, "load", mislabelled)
    with pytest.raises(ValueError, match=r"the train labels of digits must lie in \[0, 10\)"):
        train(quick(tmp_path / "run"))


def test_the_method_makes_the_student(tmp_path, monkeypatch):
    asked = []

    def make_student(build, num_classes, teachers, options):
        asked.append((num_classes, teachers, options))
        return build(num_classes).requires_grad_(True)

    monkeypatch.setattr(Natural, "make_student", make_student)
    settings = {"method": "natural", "mean": (0.3,), "std": (0.4,), "average": "ema", "epochs": 1}
    trainer = Trainer(quick(tmp_path / "run", options={"label_smoothing": 0.1}, **settings))
    trainer.fit()
    assert asked == [(10, 0, {"label_smoothing": 0.1})]
    network, meta = models.load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert (meta["mean"], meta["extra"]["average"]) == ([0.3], "ema")
    x = trainer.splits.val.float()
    assert torch.equal(network(x), trainer.validated.eval()(x))


def test_weights_are_perturbed_after_the_attack(tmp_path, monkeypatch):
    seen = []

    def note(name):
        original = getattr(TRADES, name)

        def noting(self, *args):
            seen.append((name, self.student.stem_weight()))
            return original(self, *args)

        monkeypatch.setattr(TRADES, name, noting)

    config = quick(tmp_path / "run", awp_gamma=0.01, precision="bf16")
    trainer = Trainer(config)
    weight = next(p for p in trainer.student.parameters() if p.dim() > 1)
    vars(trainer.student)["stem_weight"] = lambda: weight.detach().clone()
    note("attack")
    note("outer")
    next(trainer.steps())
    (_, attacked), (_, proxy), (_, moved) = seen
    assert [name for name, _ in seen] == ["attack", "outer", "outer"]
    assert torch.equal(attacked, proxy)
    torch.testing.assert_close((moved - proxy).norm(), 0.01 * proxy.norm())
    assert not torch.equal(weight, attacked) and "outer" not in vars(trainer.method)


@pytest.mark.parametrize("method", ["natural", "pgd-at"])
def test_labels_can_be_smoothed(method):
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    x, y = torch.rand(5, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    built = methods.build(method, network, label_smoothing=0.1)
    x_adv = built.attack(x, y)
    loss, _ = built.outer(x, x_adv, y)
    targets = 0.9 * F.one_hot(y, 3) + 0.1 / 3
    expected = -(targets * network(x_adv).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)


def test_smoothing_is_refused_where_no_label_is_learnt(tmp_path):
    with pytest.raises(ValueError, match="unknown option of method 'rslad': 'label_smoothing'"):
        train(quick(tmp_path / "run", method="rslad", options={"label_smoothing": 0.1}))


def test_the_teacher_s_clean_logits_are_cached(tmp_path):
    teacher = train(quick(tmp_path / "teacher", epochs=1)).out / "last.safetensors"
    settings = {"method": "rslad", "teacher": teacher, "epochs": 2}
    plain = train(quick(tmp_path / "plain", **settings))
    trainer = Trainer(quick(tmp_path / "cached", teacher_cache=0.01, **settings))
    result = trainer.fit()
    # The digits have one view: the second epoch asks nothing.
    assert (trainer.method.cache.misses, trainer.method.cache.hits) == (256, 256)
    losses = [[row["loss"] for row in run.metrics] for run in (plain, result)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    with pytest.raises(ValueError, match=r"\(--teacher-cache\) must be above 0.00015 GiB, .* 256"):
        train(quick(tmp_path / "small", teacher_cache=0.0001, **settings))
    with pytest.raises(ValueError, match="teacher_cache needs teacher"):
        train(quick(tmp_path / "trades", teacher_cache=0.01))
