"""The ops' own tests once more with the Triton kernels, in Triton's interpreter.

In processes of their own: TRITON_INTERPRET is read when kernels are made. The interpreter rounds
fp32 to bf16 towards zero, up to one unit in the last place instead of half of one; the tests'
bounds for half precision leave room for that.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).parents[1]
# File -> arguments beside it, and how many tests at least.
FILES = {
    "test_pgd_step.py": (["--deselect", "tests/ops/test_pgd_step.py::test_same_bits_for_any_"
                          "number_of_threads"], 450),
    "test_random_start.py": ([], 100),
    "test_logit_loss.py": ([], 350),
    "test_distill_kl.py": ([], 60),
    # The rest of that file calls the compiled operators by name.
    "test_boundary.py": (["-k", "compile or version or require_grad or inference or bad"], 18),
    "test_triton.py": ([], 40),
}  # fmt: skip


# On a GPU a part of them, since every size is compiled anew; tests/ops/test_triton.py is collected
# there as any other file.
ON_THE_DEVICE = {
    "test_pgd_step.py": ("cuda and (4x3x8x8 or published or layouts)", 40),
    "test_logit_loss.py": ("cuda and (1000-dtype0 or 1000-dtype2 or infinity or nan)", 20),
}


def passes(file: str, arguments: list[str], fewest: int, **variables: str) -> None:
    """Runs pytest on one file: nothing fails, and so many tests pass."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FASTARD_BACKEND": "triton", **variables}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
               # Lanes beyond a sample or a row compute with infinities, in numpy.
               "-W", "ignore::RuntimeWarning", f"tests/ops/{file}", *arguments]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= fewest, done.stdout[-500:]


@pytest.mark.parametrize("file", FILES)
def test_in_the_interpreter(file):
    passes(file, *FILES[file], TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("file", ON_THE_DEVICE)
def test_on_the_device(file):
    selected, fewest = ON_THE_DEVICE[file]
    passes(file, ["-k", selected], fewest, TRITON_INTERPRET="0")
