"""`fastard doctor`: what it says, and that it notices what is wrong."""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import fastard
from fastard import doctor, native, ops
from tests.ops.cases import native_only


def examined() -> tuple[int, str]:
    """The exit status and everything printed, white space squeezed."""
    sheet = io.StringIO()
    status = doctor.main(Console(file=sheet, width=250))
    return status, re.sub(r"\s+", " ", sheet.getvalue())


@native_only
def test_a_sound_machine():
    status, said = examined()
    assert status == 0
    assert said.rstrip().endswith("Everything works.")
    assert torch.__version__ in said and fastard.__version__ in said
    for op in doctor.OPS:
        assert f"{op} │ cpu │ native │ {native.reason}" in said
    assert f"{native.module.cpu_isa()} of base" in said
    assert native.cuda()[1] in said
    assert "WRONG" not in said
    assert said.count("OK") == len(list(doctor._every_check())) * (1 + torch.cuda.is_available())


@pytest.mark.parametrize("op", [*doctor.OPS, "pgd_kl"])
def test_a_wrong_value_is_named(monkeypatch, op):
    owner = fastard if op == "pgd_kl" else ops
    right = getattr(owner, op)

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        if op.endswith("_"):
            return result.add_(1e-3)
        if isinstance(result, tuple):
            return (result[0] + 1e-3, *result[1:])
        return result + 1e-3

    monkeypatch.setattr(owner, op, wrong)
    status, said = examined()
    assert status == 1
    assert re.search(rf"{op}[^│]*│ cpu │ \S+ │ WRONG", said)
    assert f"{op} " in said.partition("Wrong:")[2]


def test_an_op_that_dies_or_gives_nan_is_named(monkeypatch):
    def dies(*args, **kwargs):
        raise RuntimeError("illegal [memory] access")

    monkeypatch.setattr(ops, "distill_kl", dies)
    monkeypatch.setattr(ops, "random_start_", lambda x_adv, *_, **__: x_adv.fill_(float("nan")))
    status, said = examined()
    assert status == 1
    assert "distill_kl on cpu failed: illegal [memory] access" in said
    assert "random_start_ gaussian on cpu is off by nan" in said


def test_a_missing_package_is_said(monkeypatch):
    version = importlib.metadata.version

    def without(name):
        if name in ("torchvision", "triton"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    status, said = examined()
    assert status == 1
    assert "triton │ not installed" in said
    assert said.partition("Wrong:")[2].split() == ["1", "torchvision", "is", "not", "installed."]


def test_a_module_that_did_not_load_is_wrong(monkeypatch):
    """Unless nobody asked for it."""
    ops.backend.cache_clear()
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "reason", "fastard._C could not be loaded (no such file)")
    status, said = examined()
    assert status == 1
    assert "Wrong: 1 fastard._C could not be loaded (no such file)." in said
    monkeypatch.setenv("FASTARD_BACKEND", "reference")
    ops.backend.cache_clear()
    status, said = examined()
    assert status == 0
    monkeypatch.setattr(native, "torch_version", lambda: (2, 10))
    status, said = examined()
    assert status == 1
    ops.backend.cache_clear()


def run_doctor(**variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "fastard", "doctor"]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_reference_backend_is_reported():
    done = run_doctor(FASTARD_BACKEND="reference")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("FASTARD_BACKEND=reference") == len(doctor.OPS)
    assert done.stderr == ""


def test_the_triton_backend_is_reported():
    pytest.importorskip("triton", reason="triton is not installed")
    done = run_doctor(FASTARD_BACKEND="triton", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout + done.stderr
    for op in doctor.OPS:
        assert re.search(rf"{op} +│ cpu +│ triton +│ FASTARD_BACKEND=triton", done.stdout)
    done = run_doctor(FASTARD_BACKEND="triton", TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    said = "FASTARD_BACKEND=triton, but on CPU tensors Triton runs in its interpreter alone"
    assert said in done.stdout.partition("Wrong:")[2]


def test_an_unknown_backend_is_one_sentence():
    done = run_doctor(FASTARD_BACKEND="fast")
    assert done.returncode == 2
    sentence = "FASTARD_BACKEND must be native, triton or reference, not 'fast'."
    assert done.stderr == f"error: {sentence}\n"


@pytest.mark.filterwarnings("ignore:fastard.ops")
def test_a_cuda_device_that_cannot_be_used_is_wrong_unless_asked_for(monkeypatch):
    monkeypatch.setattr(native, "cuda", lambda: (False, "built without CUDA"))
    for reason, count in (("nvcc does not work", 1), ("FASTARD_CUDA=off", 0)):
        module = SimpleNamespace(has_cuda=False, cuda_reason=reason)
        monkeypatch.setattr(native, "module", module)
        faults = doctor._backends(Console(file=io.StringIO()), ["cuda"])
        assert len(faults) == count
    ops.backend.cache_clear()


@pytest.mark.parametrize(
    ("archs", "missing"),
    [
        ("75-real;90-real;120", []),
        ("75-real;80-real;90-real", ["sm_80"]),
        ("75;86-virtual;90a-real", ["sm_90a"]),
        ("native", []),
    ],
)
def test_machine_code_is_looked_for(tmp_path, monkeypatch, archs, missing):
    listing = "".join(f"ELF file {i}: _C.{i}.sm_{a}.cubin\n" for i, a in enumerate((75, 90, 120)))
    tool, binary = tmp_path / "cuobjdump", tmp_path / "_C.so"
    tool.write_text(f"#!/bin/sh\ntest $1 = --list-elf && test $2 = {binary} && echo '{listing}'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(doctor, "_cuobjdump", lambda: tool)
    said, faults = doctor._architectures(archs, binary)
    assert "machine code for 75, 90, 120" in said
    assert faults == [f"_C.so holds no machine code for {arch}." for arch in missing]
    tool.write_text("#!/bin/sh\necho 'cannot open' >&2; exit 1\n")
    assert doctor._architectures(archs, binary)[1] == ["cuobjdump cannot read _C.so: cannot open."]
