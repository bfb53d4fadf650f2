"""Loading the compiled module: what is refused, with which words, and what importing costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fastard
from fastard import native
from tests.ops.cases import native_only

PACKAGE = Path(fastard.__file__).parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
STEP_TWICE = """
import json, warnings, torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from fastard import native, ops
    moved = [ops.pgd_step_(torch.zeros(1, 4), torch.ones(1, 4), torch.zeros(1, 4)) for _ in "ab"]
print(json.dumps({
    "reason": native.reason, "backend": ops.backend("pgd_step_", "cpu").name,
    "warnings": [str(w.message) for w in caught if w.category is RuntimeWarning],
    "moved": moved[1].max().item(),
}))
"""


# An editable installation finds the compiled module wherever the package itself was copied to.
NOT_EDITABLE = """
import sys
sys.meta_path = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
"""


def python(code: str, path: Path = PACKAGE.parent, **variables: str) -> subprocess.CompletedProcess:
    """Runs code in a fresh interpreter that sees `path` first and no variable of ours but these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FASTARD_")}
    environment = {**kept, "PYTHONPATH": str(path), **variables}
    return subprocess.run(
        [sys.executable, "-c", NOT_EDITABLE + code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=path,
    )


def printed(code: str, path: Path = PACKAGE.parent, **variables: str):
    done = python(code, path, **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def bare_package(tmp_path):
    """A copy of the package without its compiled module."""
    without = shutil.ignore_patterns("_C*", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "fastard", ignore=without)
    return tmp_path


def test_the_compiled_module_is_loaded():
    """A silent fallback would let every other test pass without testing a kernel."""
    assert native.module is not None, native.reason
    assert native.module.cpu_isa() in native.reason


@pytest.mark.parametrize(
    ("text", "version"),
    [("2.11.0", (2, 11)), ("2.15.0+cu132", (2, 15)), ("3.0.0a0+git1", (3, 0)), ("main", (0, 0))],
)
def test_torch_version(text, version):
    assert native.torch_version(text) == version


@pytest.mark.parametrize("version", ["2.10.1+cpu", "1.13.0"])
def test_an_older_torch_is_refused_before_loading(version):
    found = printed(f"import torch; torch.__version__ = {version!r}" + STEP_TWICE)
    assert found["reason"] == f"torch {version} is older than 2.11"
    assert found["backend"] == "reference"
    assert found["moved"] == pytest.approx(2 / 255)
    code = f"import sys, torch; torch.__version__ = {version!r}; import fastard; "
    code += "print(int('fastard._C' in sys.modules))"
    assert printed(code) == 0


@pytest.mark.parametrize("content", [None, b"not a shared object"])
def test_a_module_that_does_not_load_means_the_reference(bare_package, content):
    if content is not None:
        (bare_package / "fastard" / f"_C{SUFFIX}").write_bytes(content)
    found = printed(STEP_TWICE, bare_package)
    cause = "No module named 'fastard._C'" if content is None else "file too short"
    assert found["reason"].startswith("fastard._C could not be loaded (")
    assert cause in found["reason"]
    assert found["backend"] == "reference"
    assert found["moved"] == pytest.approx(2 / 255)
    sentence = f"fastard.ops.pgd_step_ runs in plain PyTorch on cpu: {found['reason']}."
    assert found["warnings"] == [sentence]


@native_only
def test_a_refused_registration_is_an_import_error(tmp_path):
    """A second copy defines the same operators again: torch refuses, and the process lives on."""
    again = shutil.copy(native.module.__file__, tmp_path / Path(native.module.__file__).name)
    code = f"""
import importlib.util, json, fastard
spec = importlib.util.spec_from_file_location("again._C", {str(again)!r})
try:
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    error = None
except ImportError as refused:
    error = str(refused)
print(json.dumps(error))
"""
    assert printed(code).startswith("fastard: torch refused to ")


def test_native_backend_asked_for_but_missing(bare_package):
    done = python(STEP_TWICE, bare_package, FASTARD_BACKEND="native")
    assert done.returncode != 0
    sentence = "FASTARD_BACKEND=native, but fastard._C could not be loaded"
    assert f"RuntimeError: {sentence}" in done.stderr


def test_reference_backend_asked_for_is_no_warning():
    found = printed(STEP_TWICE, FASTARD_BACKEND="reference")
    assert found["backend"] == "reference"
    assert found["warnings"] == []


def test_an_unknown_backend_is_one_sentence():
    done = python(STEP_TWICE, FASTARD_BACKEND="cuda")
    wanted = "ValueError: FASTARD_BACKEND must be native, triton or reference, not 'cuda'."
    assert done.stderr.strip().splitlines()[-1] == wanted


def test_importing_is_lean():
    heavy = ["torchvision", "triton", "matplotlib", "tyro", "sklearn", "rich", "yaml"]
    code = f"""
import json, sys, torch
before = set(sys.modules)
import fastard
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps([sorted(new & set({heavy})), torch.cuda.is_initialized()]))
"""
    assert printed(code) == [[], False]


def test_an_instruction_set_that_is_not_there_is_one_sentence():
    done = python("import fastard", FASTARD_CPU_ISA="avx9")
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1] == (
        "ValueError: FASTARD_CPU_ISA must be base, avx2 or avx512, and one that this CPU has, "
        "not 'avx9'."
    )


@pytest.mark.parametrize("archs, capability, runs", [
    ("75-real,80-real,86-real,89-real,90-real,100-real,120", (9, 0), True),
    ("75-real,80-real,86-real,89-real,90-real,100-real,120", (8, 7), True),
    ("75-real,80-real,86-real,89-real,90-real,100-real,120", (11, 0), False),
    ("75-real,80-real,86-real,89-real,90-real,100-real,120", (12, 1), True),
    ("90-real", (8, 0), False), ("90-real", (10, 0), False), ("90", (10, 0), True),
    ("90a-real", (9, 0), True), ("90a", (10, 0), False), ("80-virtual", (9, 0), True),
    ("80-virtual", (7, 5), False), ("86-real", (8, 0), False), ("", (9, 0), False),
])  # fmt: skip
def test_which_devices_the_code_serves(archs, capability, runs):
    assert native.serves(archs, capability) is runs
