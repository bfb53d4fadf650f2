"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

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


@pytest.fixture(scope="session")
def data_root():
    """The folder of real data, laid out as its README says."""
    root = os.environ.get("FASTARD_DATA")
    if not root:
        pytest.skip("FASTARD_DATA is not set: no real data")
    return Path(root)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
