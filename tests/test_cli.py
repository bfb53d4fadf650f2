"""The command line: its commands end to end, its help, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastard
from fastard import cli

QUICK = ["--student", "small_cnn-4", "--steps", "2", "--epochs", "1", "--threads", "1"]
QUICK += ["--val", "60", "--val-steps", "2"]


def test_train_resume_and_evaluate(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", "--method", "trades", "--out", str(out), *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "val robust" in printed
    assert "held-out" in printed
    assert cli.main(["train", "--out", str(out), "--resume"]) == 0
    capsys.readouterr()
    result = tmp_path / "result.json"
    arguments = ["--checkpoint", str(out / "best.safetensors"), "--n", "10", "--out", str(result)]
    assert cli.main(["evaluate", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "N=10" in printed
    assert "held-out" in printed
    assert json.loads(result.read_text())["n"] == 10


def test_options_and_lists_reach_the_config(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "train", lambda config, console: seen.append(config))
    line = "train --method trades --options beta 2.5 faithful True --milestones 3 5 --eps 0.1"
    assert cli.main([*line.split(), "--mean", "0.5", "--std", "0.25"]) == 0
    (config,) = seen
    assert config.options == {"beta": 2.5, "faithful": True}
    assert (config.milestones, config.eps) == ((3, 5), 0.1)
    assert (config.mean, config.std) == ((0.5,), (0.25,))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train --method rslda", "error: unknown method 'rslda' (did you mean 'rslad'?)"),
        ("train --method rslad --teacher none.pt --out {out}", "none.pt"),
        ("train --method trades --data cifar10 --data-root none --out {out}", "--download"),
        ("train --method trades --options beta abc --out {out}", "option beta must be a finite"),
        ("evaluate --checkpoint none.safetensors --data digits", "none.safetensors"),
    ],
)
def test_bad_input_is_one_sentence_on_stderr(tmp_path, monkeypatch, capsys, line, sentence):
    monkeypatch.delenv("FASTARD_DEBUG", raising=False)
    assert cli.main(line.format(out=tmp_path / "run").split()) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    monkeypatch.setenv("FASTARD_DEBUG", "1")
    with pytest.raises((ValueError, FileNotFoundError)):
        cli.main(line.format(out=tmp_path / "run").split())


@pytest.mark.parametrize(
    ("function", "line", "sentence"),
    [
        ("train", "train --method trades", "interrupted; --resume continues the run"),
        ("evaluate_checkpoint", "evaluate --checkpoint a.pt", "the same command goes on"),
        ("bench", "bench --suite quick", "interrupted\n"),
    ],
)
def test_interruption_says_how_to_go_on(monkeypatch, capsys, function, line, sentence):
    def interrupted(config, console):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, function, interrupted)
    assert cli.main(line.split()) == 130
    said = capsys.readouterr().err
    assert sentence in said and ("--resume" in said) == (function == "train")


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch):
    def defective(config, console):
        raise KeyError("internal")

    monkeypatch.setattr(cli, "train", defective)
    with pytest.raises(KeyError):
        cli.main(["train", "--method", "trades"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--help", ["train", "evaluate", "doctor"]),
        ("train --help", ["--method", "--teacher", "--resume", "--dry-run", "rslad-official"]),
        ("evaluate --help", ["--checkpoint", "--suite", "--n", "--eps", "--norm"]),
    ],
)
def test_help(capsys, line, words):
    with pytest.raises(SystemExit) as stopped:
        cli.main(line.split())
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for word in words:
        assert word in printed


def test_version_and_module():
    command = [sys.executable, "-m", "fastard", "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == f"fastard {fastard.__version__}\n"


def test_radii_as_papers_write_them(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "train", lambda config, console: seen.append(config))
    assert (
        cli.main(
            [
                "train",
                "--method",
                "trades",
                "--eps",
                "8/255",
                "--alpha=2/255",
                "--out",
                "runs/8/255",
            ]
        )
        == 0
    )
    (config,) = seen
    assert (config.eps, config.alpha, config.out) == (8 / 255, 2 / 255, Path("runs/8/255"))
