"""Every example runs, by the command that examples/README.md gives."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
README = (EXAMPLES / "README.md").read_text()
COMMANDS = re.findall(r"^python examples/(\S+)\.py (.*)$", README, flags=re.M)
# What each needs beside the package, and what its last line says.
NEEDS = {"accelerate_rslad": "accelerate", "timm_imagefolder": "timm"}
LAST = {
    "rslad_official": r"best PGD-20, selected on the test set as published: (?P<robust>[\d.]+)%",
    "trades_loop": r"test: loss [\d.]+, clean (?P<clean>[\d.]+)%, PGD-20 [\d.]+%",
    "accelerate_rslad": r"epoch 1: loss [\d.]+, clean (?P<clean>[\d.]+)%, PGD-20 [\d.]+%",
    "timm_imagefolder": r"epoch 1: loss [\d.]+, clean [\d.]+%, PGD-10 [\d.]+%",
}


@pytest.fixture
def image_folder(data_root, tmp_path):
    """Some of CIFAR-10's images as files, train/<class>/* and val/<class>/*."""
    spec = importlib.util.spec_from_file_location("unpack", data_root / "unpack_cifar.py")
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    for part, archive, count in (("train", "train", 12), ("val", "test", 4)):
        x, labels = unpack.load([data_root / "mini" / f"cifar10_mini_{archive}.zip"])
        for number in range(10):
            folder = tmp_path / part / str(number)
            folder.mkdir(parents=True)
            for row in (labels["labels"] == number).nonzero()[0][:count]:
                Image.fromarray(x[row]).save(folder / f"{row}.png")
    return tmp_path


def test_every_example_has_its_command_and_its_line():
    files = {path.stem for path in EXAMPLES.glob("*.py")}
    assert files == {name for name, _ in COMMANDS} == set(LAST)
    site = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    for name in files:
        assert f"| `{name}.py` |" in README and f"| `examples/{name}.py` |" in site


@pytest.mark.parametrize(("name", "arguments"), COMMANDS)
def test_example_runs(name, arguments, request, monkeypatch, capsys):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed: pip install .[examples]")
    command = shlex.split(arguments)
    if "FOLDER" in command:
        command[command.index("FOLDER")] = str(request.getfixturevalue("image_folder"))
    if name == "accelerate_rslad":  # it keeps the state of a process
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / f"{name}.py"), *command],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    else:
        monkeypatch.setattr(sys, "argv", [name, *command])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        printed = capsys.readouterr().out
    found = re.fullmatch(LAST[name], printed.strip().splitlines()[-1])
    assert found, printed
    for accuracy in found.groupdict().values():
        assert float(accuracy) > 15, printed  # ten classes: chance is 10 %
