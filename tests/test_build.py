"""Building the package anew, from a copy of the tree: pip, in place, with and without nvcc."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
REASON = "import json, sys; from fastard import native as n; m = n.module; "
REASON += "json.dump([m.has_cuda, m.cuda_archs, getattr(m, 'cuda_reason', '')], sys.stdout)"

pytestmark = pytest.mark.build


def load_setup(monkeypatch):
    """setup.py as a module; nothing is built."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    spec = importlib.util.spec_from_file_location("fastard_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def machine_nvcc() -> str | None:
    with pytest.MonkeyPatch.context() as patch:
        return load_setup(patch).find_nvcc()


@pytest.fixture
def tree(tmp_path):
    """A copy of the sources without anything built."""
    copy = tmp_path / "tree"
    built = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for folder in ("fastard", "csrc", "benchmarks"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=built)
    for path in ROOT.iterdir():
        if path.is_file() and (path.suffix or path.name == "LICENSE"):
            shutil.copy(path, copy)
    return copy


@pytest.fixture(scope="module")
def build_tools():
    """What a build without isolation needs in this environment: the extra `build`."""
    for name in ("pybind11", "cmake", "ninja"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install 'fastard[build]'")
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools.__version__} is older than 77")


def run(tree: Path, *command: str, **variables: str) -> subprocess.CompletedProcess:
    """A command in the tree, with no build variable set but these; both streams in stdout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FASTARD_")}
    kept.pop("CUDACXX", None)
    environment = {"MAX_JOBS": "2", **kept, "PYTHONPATH": str(tree), **variables}
    return subprocess.run(
        [sys.executable, *command], cwd=tree, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def build(tree: Path, **variables: str) -> str:
    done = run(tree, "setup.py", "build_ext", "--inplace", **variables)
    assert done.returncode == 0, done.stdout
    return done.stdout


def refused(tree: Path, **variables: str) -> str:
    """The last line of a build that must fail."""
    done = run(tree, "setup.py", "build_ext", "--inplace", **variables)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    assert not list((tree / "fastard").glob("_C*"))
    return done.stdout.strip().splitlines()[-1]


def loaded(tree: Path) -> list:
    """has_cuda, cuda_archs and cuda_reason of the tree's own module."""
    done = run(tree, "-c", REASON)
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout)


@pytest.fixture
def broken_nvcc(tmp_path):
    script = tmp_path / "broken" / "bin" / "nvcc"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    return str(script)


def test_two_isolated_installs_from_one_tree(tree, tmp_path):
    """pip's build environment lies elsewhere each time: what the first left does not hold."""
    fetch = ["download", "-q", "--no-deps", "-d", str(tmp_path / "wheels"), "ninja"]
    probe = run(tree, "-m", "pip", *fetch)
    if probe.returncode:
        pytest.skip(f"pip cannot fetch build requirements: {probe.stdout.strip()[-200:]}")
    for number in ("1", "2"):
        target = tmp_path / f"target{number}"
        command = ["-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(tree)]
        done = run(tree, *command, FASTARD_CUDA="off")
        assert done.returncode == 0, done.stdout
        assert len(list((target / "fastard").glob("_C.*"))) == 1
        assert loaded(target) == [False, "", "FASTARD_CUDA=off"]


def test_an_unchanged_rebuild_does_nothing(tree, build_tools):
    build(tree, FASTARD_CUDA="off")
    binary = next((tree / "fastard").glob("_C.*"))
    made = binary.stat().st_mtime_ns
    begun = time.perf_counter()
    build(tree, FASTARD_CUDA="off")
    assert time.perf_counter() - begun < 3
    assert binary.stat().st_mtime_ns == made
    source = tree / "csrc" / "cpu" / "dispatch.cpp"
    source.write_text(source.read_text() + "\n")
    assert "dispatch.cpp" in build(tree, FASTARD_CUDA="off")


def test_a_broken_nvcc_means_a_cpu_build_that_says_so(tree, build_tools, broken_nvcc):
    said = build(tree, FASTARD_CUDA="auto", CUDACXX=broken_nvcc)
    loud = [line for line in said.splitlines() if line.startswith("***")]
    assert len(loud) == 1
    assert broken_nvcc in loud[0] and "BUILDING WITHOUT CUDA" in loud[0]
    has_cuda, archs, reason = loaded(tree)
    assert (has_cuda, archs) == (False, "")
    assert broken_nvcc in reason


def test_a_broken_nvcc_fails_where_cuda_is_demanded(tree, build_tools, broken_nvcc):
    sentence = refused(tree, FASTARD_CUDA="on", CUDACXX=broken_nvcc)
    assert sentence == f"fastard: FASTARD_CUDA=on, but {broken_nvcc} does not work."


def test_an_unknown_wish_is_one_sentence(tree, build_tools):
    sentence = refused(tree, FASTARD_CUDA="maybe")
    assert sentence == "fastard: FASTARD_CUDA must be auto, on or off, not 'maybe'."


@pytest.mark.skipif(machine_nvcc() is None, reason="no nvcc")
def test_cuda_for_the_architectures_named(tree, build_tools):
    """More than one: a list has to survive CMake, the compiler's command line and C."""
    build(tree, FASTARD_CUDA="on", FASTARD_CUDA_ARCH="80-real;90-real")
    has_cuda, archs, reason = loaded(tree)
    assert has_cuda
    assert re.split("[;, ]", archs) == ["80-real", "90-real"]
    assert reason == ""


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """setup.py on a machine where no place holds an nvcc."""
    module = load_setup(monkeypatch)
    for variable in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    inside = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda p: inside(p) and str(tmp_path) in str(p))
    return module


def test_nvcc_is_found_in_this_order(nowhere, monkeypatch, tmp_path):
    assert nowhere.find_nvcc() is None
    places = [tmp_path / "nvcc", tmp_path / "nvidia" / "cu12" / "bin" / "nvcc",
              tmp_path / "nvidia" / "cu13" / "bin" / "nvcc", tmp_path / "home" / "bin" / "nvcc",
              tmp_path / "named"]  # fmt: skip
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("")
        place.chmod(0o755)
    assert nowhere.find_nvcc() == str(places[0])
    wheels = importlib.util.spec_from_loader("nvidia", loader=None, is_package=True)
    wheels.submodule_search_locations = [str(tmp_path / "nvidia")]
    monkeypatch.setattr(importlib.util, "find_spec", {"nvidia": wheels}.get)
    assert nowhere.find_nvcc() == str(places[2])
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert nowhere.find_nvcc() == str(places[3])
    monkeypatch.setenv("CUDACXX", str(places[4]))
    assert nowhere.find_nvcc() == str(places[4])


def test_no_nvcc(nowhere, monkeypatch, capsys):
    configured = []
    command = nowhere.CMakeBuild(setuptools.Distribution())
    monkeypatch.setattr(command, "cmake", configured.append)
    command.without_cuda("auto", "no nvcc was found")
    loud = re.findall(r"^\*\*\*.*$", capsys.readouterr().err, flags=re.M)
    assert loud == ["*** fastard: no nvcc was found: BUILDING WITHOUT CUDA, CPU KERNELS ONLY ***"]
    assert configured == [["-DFASTARD_CUDA=OFF", "-DFASTARD_CUDA_REASON=no nvcc was found"]]
    with pytest.raises(SystemExit, match="FASTARD_CUDA=on, but no nvcc was found."):
        command.without_cuda("on", "no nvcc was found")
