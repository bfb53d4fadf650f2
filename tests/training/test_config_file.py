"""Settings in YAML: a run started from its own config.yaml, and what is refused."""

from __future__ import annotations

import pytest
import yaml
from small_runs import assert_same_weights, quick

from fastard import cli
from fastard.train import TrainConfig, load_config, train
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
