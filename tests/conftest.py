"""Fixtures that every test may use."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from fastard import ops

POISON = float("nan")


@pytest.fixture
def poisoned(monkeypatch):
    """Uninitialised floating tensors hold NaN: a kernel that leaves an element unwritten fails."""

    def poison(make):
        def wrapped(*args, **kwargs):
            t = make(*args, **kwargs)
            return t.fill_(POISON) if t.is_floating_point() else t

        return wrapped

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


@pytest.fixture(params=["kernel", "reference"])
def either(request, monkeypatch):
    """Runs a test of the engine's ops with the kernel and with plain PyTorch."""
    if request.param == "reference":
        monkeypatch.setattr(ops.layers, "implementation", lambda op, t: None)
    elif ops.backend("epilogue", "cpu").name != "native":
        pytest.skip(ops.backend("epilogue", "cpu").reason)
    return request.param


@pytest.fixture(scope="session")
def data_root():
    """The folder of real data, laid out as its README says."""
    root = os.environ.get("FASTARD_DATA")
    if not root:
        pytest.skip("FASTARD_DATA is not set: no real data")
    return Path(root)


@pytest.fixture(scope="session")
def cifar_root(data_root, tmp_path_factory):
    """The official CIFAR-10 folder's parent, rebuilt from the data folder's archives."""
    spec = importlib.util.spec_from_file_location("unpack", data_root / "unpack_cifar.py")
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    root = tmp_path_factory.mktemp("cifar")
    archives = sorted((data_root / "cifar10").glob("*.zip"))
    unpack.rebuild(root / "cifar-10-batches-py", archives)
    return root


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
