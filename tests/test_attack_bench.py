"""The attack benchmark runs, and its verdicts follow from its seconds."""

from __future__ import annotations

import pytest
import torch

from benchmarks import attack
from benchmarks.attack_floor import floor
from benchmarks.readme_table import attack_rows
from fastard.engine import Program


def test_measures_every_loop():
    found = attack.measure("mobilenetv2", 2, 1, ())
    assert set(found["seconds"]) == {
        "published", "fastard fp32", "fastard bf16", "floor fp32", "floor bf16",
    }  # fmt: skip
    assert all(v["min"] > 0 and v["rounds"] == 1 for v in found["seconds"].values())
    row = attack_rows({"networks": [found]})[-1]
    assert row.startswith("| mobilenetv2, batch 2 |") and "of the floor's time" in row


def test_verdicts():
    samples = {
        "published": [6.0, 9.0], "fastard fp32": [2.5, 2.0], "fastard bf16": [1.5],
        "floor fp32": [1.0], "floor bf16": [1.0], "compile default nchw": [2.4],
        "compile max-autotune nchw": [2.2],
    }  # fmt: skip
    lines = {r["what"]: r for r in attack.summary("mobilenetv2", 32, 1.0, samples)["lines"]}
    against = lines["fastard fp32 against the published loop"]
    assert (against["value"], against["target"], against["reached"]) == (3.0, 3.0, True)
    assert not lines["fastard bf16 against the published loop"]["reached"]
    assert not lines["fastard fp32 over the floor"]["reached"]
    assert lines["fastard bf16 over the floor"]["reached"]
    assert lines["fastard fp32 against the fastest torch.compile"]["value"] == pytest.approx(1.1)


def test_the_floor_holds_every_convolution():
    net, x = attack.network("mobilenetv2").eval(), torch.rand(2, 3, 32, 32)
    program = Program(net, "fp32")
    with program.running(x):
        plan = program.plan
    calls: list[str] = []

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    run = floor(plan, net, x)
    with Counting():
        run()
    products = [c for c in calls if any(k in c for k in ("conv", "depthwise", "mm", "linear"))]
    assert len(products) == 2 * 58
