"""Settings in YAML: a run started from its own config.yaml, and what is refused."""

from __future__ import annotations

import pytest
import torch
import yaml
from rich.console import Console
from small_runs import assert_same_weights, quick

from fastard import cli
from fastard.train import TrainConfig, load_config, train
from fastard.training.changes import resumed
from fastard.training.defaults import resolve


def test_a_run_is_reproduced_from_its_own_file(tmp_path):
    first = train(quick(tmp_path / "first", average="ema", schedule="onecycle", peak=0.25))
    again = train(TrainConfig(config=first.out / "config.yaml", out=tmp_path / "again"))
    assert {**vars(again.config), "out": None} == {**vars(first.config), "out": None}
    assert_same_weights(first.out, again.out)


def test_the_command_line_wins_over_the_file(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "train", lambda config, console: seen.append(resolve(config)))
    file = tmp_path / "settings.yaml"
    file.write_text(
        "method: rslad\ndata: cifar10\nepochs: 7\nlr: 1\nmilestones: [3, 5]\n"
        "teacher: a.pt\noptions: {adv_weight: 0.5, scale: 2}\ndownload: false\n"
    )
    line = f"train --config {file} --epochs 9 --options scale 3.0"
    assert cli.main(line.split()) == 0
    (config,) = seen
    assert (config.method, config.epochs, config.lr, config.milestones) == ("rslad", 9, 1.0, (3, 5))
    assert config.options == {"adv_weight": 0.5, "scale": 3.0}
    assert config.teacher == ("a.pt",)


def test_several_teachers_on_the_command_line_and_in_python(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(cli, "train", lambda config, console: seen.append(config))
    line = "train --method rslad --teacher a.pt --teacher b.pt --teacher-model resnet18"
    assert cli.main(line.split()) == 0
    assert seen[0].teacher == ("a.pt", "b.pt")
    assert seen[0].teacher_model == ("resnet18",)
    assert TrainConfig(teacher=tmp_path / "a.pt").teacher == (str(tmp_path / "a.pt"),)
    assert TrainConfig(teacher=[tmp_path, "b"]).teacher == (str(tmp_path), "b")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epocs: 3", r"unknown setting in .*'epocs' \(did you mean 'epochs'\?\)"),
        ("epochs: many", "epochs in .* must be a whole number or nothing, but is 'many'"),
        ("epochs: true", "epochs in .* must be a whole number or nothing, but is True"),
        ("milestones: 3", "milestones in .* must be a list of a whole number or nothing"),
        ("options: [beta]", "options in .* must be settings by name, but is"),
        ("resume: true", "unknown setting in .*'resume'"),
        ("- method", "must hold settings by name, but holds a list"),
        ("method: [", "is not readable as YAML"),
        ("schedule: step", "unknown schedule 'step'"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, text, sentence):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=sentence) as raised:
        resolve(TrainConfig(config=file, method="trades"))
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config \(--config\) must be a YAML file"):
        load_config(tmp_path / "none.yaml")


def test_every_setting_can_be_written_and_read(tmp_path):
    config = resolve(quick(tmp_path / "run", mean=(0.5,), std=(0.25,), teacher=("a", "b")))
    from fastard.training.config_file import from_dict, to_dict

    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_numbers_with_an_exponent_are_numbers(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("lr: 1e-3\nmean: [5E-1]\noptions: {scale: 2e0, words: e-3}\n")
    config = load_config(file)
    assert (config.lr, config.mean) == (1e-3, (0.5,))
    assert config.options == {"scale": 2.0, "words": "e-3"}
    file.write_text("epochs: 1e3\n")
    with pytest.raises(ValueError, match="epochs in .* must be a whole number .*but is '1e3'"):
        load_config(file)


def test_another_schedule_leaves_the_milestones_of_the_file(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(
        "method: trades\nschedule: multistep\nmilestones: [74, 90]\naverage: ema\nema_decay: 0.5\n"
    )
    assert resolve(TrainConfig(config=file, epochs=80)).milestones == (74, 90)
    other = resolve(TrainConfig(config=file, schedule="cosine", average="none", epochs=20))
    assert (other.milestones, other.ema_decay) == ((), None)
    assert resolve(TrainConfig(method="trades", average="ema")).ema_decay == 0.999


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"teacher_cache": 1.0}, "teacher_cache needs teacher, but is 1.0 without it"),
        ({"teacher_cache_folder": "."}, "teacher_cache_folder needs teacher_cache, but is"),
        ({"schedule": "cosine", "milestones": (3,)}, "milestones needs schedule multistep"),
        ({"ema_decay": 0.999}, "ema_decay needs average ema, but is 0.999 without it"),
        ({"average_start": 2}, "average_start needs average, but is 2 without it"),
        ({"awp_warmup": 2}, "awp_warmup needs awp_gamma, but is 2 without it"),
        ({"schedule": "cosine", "lr_gamma": 0.2}, "lr_gamma needs schedule multistep, but is 0.2"),
        ({"schedule": "cosine", "peak": 0.5}, "peak needs schedule onecycle or cyclic, but is 0.5"),
        ({"teacher_model": ("resnet18",)}, "teacher_model needs teacher, but is"),
        ({"original_share": 0.5}, "original_share needs extra, but is 0.5 without it"),
        ({"epochs": 20, "milestones": (74, 90)}, "milestones must lie within the 20 epochs"),
        ({"norm": "L2"}, r"eps \(--eps\) must be given with norm 'L2': 0.15, .* is Linf's"),
    ],
)
def test_a_setting_without_effect_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        resolve(TrainConfig(method="trades", **settings))


def test_a_missing_folder_of_a_cache_is_named_at_once(tmp_path):
    settings = {"teacher": "a.pt", "teacher_cache": 1.0}
    with pytest.raises(FileNotFoundError, match=r"teacher_cache_folder .* there is none at .*none"):
        resolve(TrainConfig(method="rslad", teacher_cache_folder=tmp_path / "none", **settings))
    resolve(TrainConfig(method="rslad", teacher_cache_folder=tmp_path, **settings))


def test_milestones_that_never_come_are_said(tmp_path):
    console = Console(record=True, width=300)
    train(quick(tmp_path / "run", epochs=1, milestones=(1, 74, 90), dry_run=True), console)
    assert "milestones 74, 90 come after the last of 1 epochs" in console.export_text()


def test_a_resumed_run_takes_another_schedule_without_its_milestones():
    saved = resolve(TrainConfig(method="trades", data="cifar10", average="ema", ema_decay=0.5))
    assert saved.schedule == "multistep" and saved.milestones
    asked = TrainConfig(resume=True, allow_changes=True, schedule="cosine", average="swa")
    config = resolve(resumed(asked, saved))
    assert (config.schedule, config.milestones, config.ema_decay) == ("cosine", (), None)


def test_a_radius_given_goes_with_any_norm():
    found = resolve(TrainConfig(method="trades", norm="L2", eps=1.0))
    assert (found.eps, found.alpha, found.norm) == (1.0, 0.25, "L2")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"eps": "8/255"}, "eps must be a number or nothing, but is a str"),
        ({"student": torch.nn.Linear(2, 2)}, "student must be a text or nothing, but is a Linear"),
        ({"epochs": 1.5}, "epochs must be a whole number or nothing, but is a float"),
    ],
)
def test_another_kind_of_value_is_refused(settings, sentence):
    with pytest.raises(TypeError, match=sentence):
        resolve(TrainConfig(method="trades", **settings))
