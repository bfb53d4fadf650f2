"""Training runs on the digits: their files, selection, resumption and refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fastard import data, models
from fastard.evaluate import EvaluateConfig, evaluate_checkpoint
from fastard.evaluation.judge import judge
from fastard.methods.natural import Natural
from fastard.methods.trades import TRADES
from fastard.progress import QUIET
from fastard.train import TrainConfig, train
from fastard.training.changes import resumed
from fastard.training.config_file import from_dict, to_dict
from fastard.training.defaults import resolve
from fastard.training.selection import Selection


def quick(out, **settings) -> TrainConfig:
    defaults = {"method": "trades", "student": "small_cnn-4", "steps": 2, "epochs": 2, "val": 60}
    return TrainConfig(**{**defaults, "val_steps": 2, "threads": 1, "out": out, **settings})


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory):
    return train(quick(tmp_path_factory.mktemp("runs") / "teacher"))


def test_run_writes_every_file(teacher_run):
    out = teacher_run.out
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("config.yaml", "metrics.jsonl", "curves.png", "examples.png", "state.pt"),
        *("summary.html", "tensorboard"),
        *("last.safetensors", "best.safetensors"),
    }
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    expected = {"lr", "loss", "val_clean", "val_robust", "images_per_s", "attack_share", "seconds"}
    assert expected <= set(rows[0])
    assert all(0 < row["attack_share"] < 1 for row in rows)
    assert rows == teacher_run.metrics
    assert sum(row["best"] for row in rows) >= 1


def test_best_is_the_epoch_of_highest_held_out_robust_accuracy(teacher_run):
    assert teacher_run.best["val_robust"] == max(r["val_robust"] for r in teacher_run.metrics)
    _, meta = models.load_checkpoint(teacher_run.out / "best.safetensors")
    assert meta["extra"]["metrics"]["epoch"] == teacher_run.best["epoch"]
    assert meta["extra"]["selection"] == "held-out"
    assert not any(key.startswith("test") for row in teacher_run.metrics for key in row)


def test_evaluate_needs_nothing_but_the_checkpoint(teacher_run, tmp_path):
    config = EvaluateConfig(
        checkpoint=teacher_run.out / "best.safetensors", n=20, out=tmp_path / "result.json"
    )
    result = evaluate_checkpoint(config, QUIET)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert (result["data"], result["eps"], result["n"]) == ("digits", 0.15, 20)
    assert result["architecture"] == "small_cnn-4"
    assert "held-out" in result["selection"]


def test_config_reproduces_the_run(teacher_run, tmp_path):
    saved = from_dict(yaml.safe_load((teacher_run.out / "config.yaml").read_text()))
    assert saved == teacher_run.config
    again = train(dataclasses.replace(saved, out=tmp_path / "again"))
    assert_same_weights(again.out / "last.safetensors", teacher_run.out / "last.safetensors")


def assert_same_weights(a, b):
    a, b = load_file(a), load_file(b)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_distillation_from_a_run(teacher_run, tmp_path):
    teacher = teacher_run.out / "best.safetensors"
    for method in ("rslad", "rslad-batchmean"):
        config = quick(tmp_path / method, method=method, teacher=teacher, epochs=1)
        result = train(config)
        assert math.isfinite(result.best["loss"])
        shares = [result.best[f"{name}_share"] for name in ("attack", "teacher", "student")]
        assert all(share > 0 for share in shares) and sum(shares) <= 1


class Interrupted(KeyboardInterrupt):
    """What the tests below stop a run with."""


def interrupt_in_epoch(monkeypatch, epoch):
    def on_epoch(self, current, epochs):
        if current == epoch:
            raise Interrupted

    monkeypatch.setattr(TRADES, "on_epoch", on_epoch)


def test_resumed_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    whole = train(quick(tmp_path / "whole", epochs=3))
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 2)
        with pytest.raises(Interrupted):
            train(quick(tmp_path / "parts", epochs=3))
    resumed = train(TrainConfig(out=tmp_path / "parts", resume=True, threads=1))
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_weights(whole.out / name, resumed.out / name)
    timings = ("images_per_s", "seconds", "attack_share", "teacher_share", "student_share")
    a, b = (
        [{k: v for k, v in row.items() if k not in timings} for row in run.metrics]
        for run in (whole, resumed)
    )
    assert a == b
    assert resumed.best == resumed.metrics[whole.best["epoch"] - 1]


def test_resume_before_the_first_finished_epoch_starts_over(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 1)
        with pytest.raises(Interrupted):
            train(quick(tmp_path / "run", epochs=1))
    result = train(TrainConfig(out=tmp_path / "run", resume=True))
    assert [row["epoch"] for row in result.metrics] == [1]


def test_resume_keeps_the_settings_of_the_run(teacher_run):
    with pytest.raises(ValueError, match="other settings: lr was 0.05, now 0.2; give"):
        train(TrainConfig(out=teacher_run.out, resume=True, lr=0.2))


def test_resume_sees_a_contradiction_that_equals_a_default(teacher_run):
    before = dataclasses.replace(teacher_run.config, data="cifar10", seed=1)
    for name, value in (("data", "digits"), ("seed", 0)):
        with pytest.raises(ValueError, match=f"{name} was .*, now {value}"):
            resumed(TrainConfig(resume=True, out=teacher_run.out, **{name: value}), before)
    assert (teacher_run.config.data, teacher_run.config.seed) == ("digits", 0)


def without_optimizer(path):
    state = torch.load(path)
    del state["optimizer"]
    torch.save(state, path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.pt", lambda path: path.write_bytes(b"garbage")),
        ("state.pt", lambda path: path.write_bytes(path.read_bytes()[:200])),
        ("state.pt", without_optimizer),
        ("config.yaml", lambda path: path.write_text("method: [trades")),
        ("config.yaml", lambda path: path.write_text("trades")),
        ("config.yaml", lambda path: path.write_text("method: trades")),
        ("metrics.jsonl", lambda path: path.write_text('{"epoch": 1}\n{"epo')),
        ("metrics.jsonl", lambda path: path.write_text("{}\n")),
        ("metrics.jsonl", lambda path: path.unlink()),
    ],
)
def test_resume_of_a_damaged_run_names_the_file(teacher_run, tmp_path, name, damage):
    out = shutil.copytree(teacher_run.out, tmp_path / "run")
    damage(out / name)
    with pytest.raises(ValueError, match=f"{name} is damaged: .") as raised:
        train(TrainConfig(out=out, resume=True))
    assert "\n" not in str(raised.value)
    assert "weights_only" not in str(raised.value)
    assert (out / "config.yaml").exists()


def test_a_corrected_run_takes_the_place_of_one_that_failed(tmp_path, monkeypatch):
    def fail(self, epoch, epochs):
        raise RuntimeError("out of memory")

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes").write_text("")
    for out in (tmp_path / "new" / "run", mine):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError):
            patch.setattr(TRADES, "on_epoch", fail)
            train(quick(out, epochs=1))
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes"]
    assert len(train(quick(mine, epochs=1)).metrics) == 1


def test_a_finished_run_resumes_to_itself(teacher_run):
    before = (teacher_run.out / "last.safetensors").read_bytes()
    result = train(TrainConfig(out=teacher_run.out, resume=True, method="trades"))
    assert result.metrics == teacher_run.metrics
    assert (teacher_run.out / "last.safetensors").read_bytes() == before


def test_test_selected_run_says_so_everywhere(tmp_path):
    config = quick(tmp_path / "run", epochs=1, val=None, selection="test-selected")
    result = train(config)
    assert yaml.safe_load((result.out / "config.yaml").read_text())["selection"] == "test-selected"
    row = result.metrics[0]
    assert row["selection"] == "test-selected"
    assert {"test_clean", "test_robust"} <= set(row)
    _, meta = models.load_checkpoint(result.out / "best.safetensors")
    assert meta["extra"]["selection"] == "test-selected"
    assert "test-selected" in meta["extra"]["selected"]


@pytest.mark.parametrize(
    ("settings", "images"),
    [
        ({"method": "trades"}, "val"),
        ({"method": "trades", "selection": "test-selected"}, "test"),
        ({"method": "trades-official"}, None),
        ({"method": "rslad-official"}, "test"),
        ({"method": "rslad-official", "val": 50}, "val"),
        ({"method": "trades", "val": 0}, None),
    ],
)
def test_only_test_selected_runs_look_at_the_test_set(settings, images):
    config = resolve(TrainConfig(**settings))
    splits = data.load("digits", val=config.val)
    chosen = Selection(config, splits, "robust").images
    assert chosen is (getattr(splits, images) if images else None)


def test_run_without_selection_keeps_the_last_epoch_as_best(tmp_path):
    result = train(quick(tmp_path / "run", val=0))
    assert result.best["epoch"] == 2
    assert_same_weights(result.out / "last.safetensors", result.out / "best.safetensors")


def test_normalised_student_in_bf16_carries_its_mean_and_std(tmp_path):
    settings = {"mean": (0.3,), "std": (0.4,), "precision": "bf16", "train_n": 128, "epochs": 1}
    result = train(quick(tmp_path / "run", **settings))
    model, meta = models.load_checkpoint(result.out / "last.safetensors")
    assert (meta["mean"], meta["std"]) == ([0.3], [0.4])
    splits = data.load("digits", val=60)
    assert judge(model, splits.val).accuracy == result.metrics[0]["val_clean"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_run_on_cuda_resumes(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 2)
        with pytest.raises(Interrupted):
            train(quick(tmp_path / "run", device="cuda"))
    result = train(TrainConfig(out=tmp_path / "run", resume=True, device="cuda"))
    assert [row["epoch"] for row in result.metrics] == [1, 2]
    assert all(0 < row["attack_share"] < 1 for row in result.metrics)


def test_natural_training_selects_on_clean_accuracy():
    splits = data.load("digits", val=50)
    config = resolve(TrainConfig(method="natural", val=50))
    selection = Selection(config, splits, Natural.selects_on)
    worse, better = {"val_clean": 0.5, "val_robust": 0.2}, {"val_clean": 0.9, "val_robust": 0.0}
    assert selection.is_best(better, worse)
    assert not Selection(config, splits, "robust").is_best(better, worse)
    weighted = Selection(config, splits, "weighted")
    assert weighted.is_best(better, worse) and not weighted.is_best(worse, better)
    assert not weighted.is_best(
        {"val_clean": 0.8, "val_robust": 0.0}, {"val_clean": 0.7, "val_robust": 0.2}
    )
    assert "by mean of clean and PGD-10 accuracy" in weighted.describe({"epoch": 1})


def test_nan_loss_names_the_step_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    outer, steps = TRADES.outer, []

    def failing(self, x, x_adv, y):
        loss, logs = outer(self, x, x_adv, y)
        steps.append(1)
        if len(steps) == 25:
            loss = loss * math.nan
            logs["loss"] = loss.detach()
        return loss, logs

    monkeypatch.setattr(TRADES, "outer", failing)
    # 1237 training images in batches of 64 are 20 steps, so the 25th is the 5th of epoch 2.
    with pytest.raises(FloatingPointError, match=r"step 5 of epoch 2.*holds epoch 1") as raised:
        train(quick(tmp_path / "run", epochs=3, batch_size=64))
    assert "\n" not in str(raised.value)
    weights = load_file(tmp_path / "run" / "last.safetensors")
    assert all(t.isfinite().all() for t in weights.values())
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_dry_run_writes_nothing(tmp_path):
    assert train(quick(tmp_path / "run", dry_run=True)) is None
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "kind", "sentence"),
    [
        ({"method": None}, ValueError, "method must be given, one of natural"),
        ({"method": "trade"}, ValueError, r"unknown method 'trade' \(did you mean 'trades'\?\)"),
        ({"data": "digit"}, ValueError, r"unknown data 'digit' \(did you mean 'digits'\?\)"),
        ({"student": "resnet19"}, ValueError, "'resnet19'"),
        ({"method": "rslad"}, ValueError, r"teacher \(--teacher\) must be given for"),
        (
            {"method": "rslad", "teacher": "no.pt"},
            FileNotFoundError,
            r"teacher \(--teacher\) must be a checkpoint file, but there is none at no.pt",
        ),
        ({"options": {"betta": 2}}, ValueError, "did you mean 'beta'"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, but is 0"),
        ({"steps": 0}, ValueError, "steps must be at least 1, but is 0"),
        ({"eps": -0.1}, ValueError, "eps must be at least 0 and finite, but is -0.1"),
        ({"norm": "L3"}, ValueError, "unknown norm 'L3'"),
        ({"schedule": "step"}, ValueError, "unknown schedule 'step'"),
        ({"selection": "held-out", "val": 0}, ValueError, "held-out selection needs val above 0"),
        ({"val": 99999}, ValueError, "val is 99999 but must be"),
        ({"device": "tpu9"}, ValueError, "device must be auto, cpu or cuda"),
        (
            {"device": "mps"},
            ValueError,
            r"device must be auto, cpu or cuda\[:index\], but is 'mps'",
        ),
        ({"device": "meta"}, ValueError, "but is 'meta'"),
        ({"device": "cuda:99"}, ValueError, "device is 'cuda:99', but torch sees"),
        ({"lr": math.inf}, ValueError, "lr must be at least 0 and finite, but is inf"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, ValueError, r"mean must have one value per ch"),
        ({"options": {"random_start": "foo"}}, ValueError, "option random_start must be True"),
        ({"options": {"beta": -1}}, ValueError, "option beta must be a finite number of at least"),
        ({"options": {"eps": "abc"}}, ValueError, "option eps must be .*, but is 'abc'"),
        ({"options": {"clip_min": "abc"}}, ValueError, "option clip_min must be a finite number"),
        ({"options": {"noise_device": "banana"}}, ValueError, "option noise_device must be None"),
        ({"options": {"generator": 3}}, ValueError, "unknown option of .*'generator'"),
        ({"data": "cifar10"}, ValueError, r"root \(--data-root\) must be given for cifar10"),
        ({"data": "cifar10", "data_root": "nowhere"}, FileNotFoundError, "cifar10 was not found"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, settings, kind, sentence):
    with pytest.raises(kind, match=sentence) as raised:
        train(quick(tmp_path / "new" / "run", **settings))
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_in_one_folder_are_refused(teacher_run):
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(quick(teacher_run.out))


def test_resume_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run to resume"):
        train(TrainConfig(out=tmp_path, resume=True))


def test_out_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        train(quick(tmp_path / "file" / "run"))


def test_teacher_of_another_class_count_is_refused(tmp_path):
    other = models.build("small_cnn-4", 7, image_size=8)
    path = tmp_path / "other.safetensors"
    models.save(path, other, name="small_cnn-4", num_classes=7, in_channels=1, image_size=8)
    with pytest.raises(ValueError, match="num_classes=7, but the data needs 10"):
        train(quick(tmp_path / "run", method="rslad", teacher=path))
    models.save(path, models.build("small_cnn-4"), name="small_cnn-4")
    with pytest.raises(ValueError, match=r"does not take images \[1, 8, 8\]"):
        train(quick(tmp_path / "run", method="rslad", teacher=path))
    assert not (tmp_path / "run").exists()


def test_values_come_from_the_user_then_the_recipe_then_the_data():
    config = resolve(TrainConfig(method="trades-official", data="cifar10"))
    assert (config.eps, config.alpha, config.weight_decay) == (0.031, 0.007, 2e-4)
    assert (config.student, config.epochs, config.milestones) == ("wrn-34-10", 76, (74, 89, 99))
    config = resolve(TrainConfig(method="rslad", data="cifar100"))
    assert (config.eps, config.alpha, config.options) == (8 / 255, 2 / 255, {"scale": 10.0})
    assert (config.student, config.val, config.selection) == ("resnet18", 1000, "held-out")
    config = resolve(TrainConfig(method="rslad", data="cifar10", epochs=30, eps=4 / 255))
    assert (config.milestones, config.alpha) == ((22, 26, 28), 1 / 255)
    config = resolve(TrainConfig(method="trades", milestones=(3, 5)))
    assert (config.schedule, config.milestones, config.eps) == ("multistep", (3, 5), 0.15)
    config = resolve(TrainConfig(method="trades", steps=3, options={"steps": 7, "beta": 2}))
    assert (config.steps, config.options) == (3, {"beta": 2})


def test_config_survives_yaml():
    config = resolve(TrainConfig(method="rslad-official", data="cifar10", mean=(0.5,), std=(0.2,)))
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config
