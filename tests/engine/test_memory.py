"""What an attack holds in memory, beside eager autograd; the peak of a process of its own."""

from __future__ import annotations

import sys

import pytest

from benchmarks.attack_process import alone


def peak(how: str, calls: int) -> int:
    return alone("resnet18", how, batch=128, calls=calls, held=True)["peak_bytes"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_an_attack_takes_half_of_what_autograd_takes_and_does_not_grow(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    eager, once, often = peak("eager", 1), peak("fastard", 1), peak("fastard", 4)
    assert once <= 0.5 * eager, f"{once} bytes, autograd {eager}"
    assert often <= 1.1 * once, f"{once} bytes after one attack, {often} after four"
