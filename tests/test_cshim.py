"""The hand-written C-shim prototypes against the installed torch's own header."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

OURS = Path(__file__).parents[1] / "csrc" / "bind" / "torch_cshim.h"
THEIRS = Path(torch.__file__).parent / "include"
TORCH_2_11 = (2 << 56) | (11 << 48)
# The stream getter stands behind USE_CUDA, the rest behind the version that fastard asks for.
PRELUDE = f"""
#define TORCH_TARGET_VERSION {TORCH_2_11:#x}ULL
#define USE_CUDA
#include <torch/csrc/stable/c/shim.h>
"""

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on PATH"),
    pytest.mark.skipif(not THEIRS.is_dir(), reason="this torch comes without headers"),
]


def complaint(source: str, folder: Path) -> str:
    """What g++ says about a translation unit; empty when it compiles."""
    unit = folder / "unit.cpp"
    unit.write_text(source)
    command = ["g++", "-fsyntax-only", "-std=c++20", "-w", f"-I{THEIRS}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert bool(done.returncode) == bool(done.stderr), done.stderr
    return done.stderr


def declared(header: str) -> list[str]:
    """The functions that our header declares; every declaration in its extern block is one."""
    code = re.sub(r"//[^\n]*", "", header)
    block = code[code.index('extern "C" {') :]
    names = re.findall(r"\b(\w*torch_\w+)\s*\(", block)
    assert len(names) == block.count(";") > 0
    return names


def test_prototypes_agree_with_torch(tmp_path):
    assert complaint(PRELUDE + f'#include "{OURS}"\n', tmp_path) == ""


def test_torch_declares_every_function(tmp_path):
    names = declared(OURS.read_text())
    uses = "".join(f"using T{i} = decltype(&{name});\n" for i, name in enumerate(names))
    assert complaint(PRELUDE + uses, tmp_path) == ""
    unheard_of = "using T = decltype(&torch_unheard_of);\n"
    assert "torch_unheard_of" in complaint(PRELUDE + unheard_of, tmp_path)


@pytest.mark.parametrize("name", declared(OURS.read_text()))
def test_a_wrong_prototype_is_refused(name, tmp_path):
    """One more argument: a conflicting declaration of a C function."""
    header = OURS.read_text()
    wrong, count = re.subn(rf"\b{name}\(\s*\)", f"{name}(int more)", header)
    if not count:
        wrong, count = re.subn(rf"\b{name}\(", f"{name}(int more, ", header)
    assert count == 1
    assert name in complaint(PRELUDE + wrong.replace("#pragma once", ""), tmp_path)
