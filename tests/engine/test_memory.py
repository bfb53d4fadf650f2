"""What an attack holds in memory, beside eager autograd; the peak of a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading, time
import torch
from benchmarks import published
import fastard

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

torch.set_num_threads(1)
net = fastard.models.build("resnet18")
x, t = torch.rand(128, 3, 32, 32), torch.randn(128, 10)
base = peak = resident()
done = False

def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
try:
    if sys.argv[1] == "eager":
        published.rslad(net, t, x, steps=1)
    else:
        for _ in range(int(sys.argv[2])):
            fastard.pgd_kl(net, x, t, steps=1, precision="fp32")
finally:
    done = True
    watcher.join()
print(peak - base)
"""


def peak_pages(*arguments: str) -> int:
    # A fixed threshold gives freed blocks back at once: what is resident is then what is held, and
    # not how the heap fell apart.
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout.split()[-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_an_attack_takes_half_of_what_autograd_takes_and_does_not_grow():
    eager, once, often = peak_pages("eager"), peak_pages("fastard", "1"), peak_pages("fastard", "4")
    assert once <= 0.5 * eager, f"{once} pages, autograd {eager}"
    assert often <= 1.1 * once, f"{once} pages after one attack, {often} after four"
