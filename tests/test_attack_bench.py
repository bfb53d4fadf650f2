"""The attack benchmark runs, its verdicts follow from its seconds, its file keeps what it has."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import attack, attack_process, attack_refresh, attack_rivals
from benchmarks.attack_floor import floor
from benchmarks.attack_record import Record
from benchmarks.attack_summary import summary
from benchmarks.attack_table import attack_rows, cost_rows
from fastard.engine import Program

SMALL = attack.Case(batch=2, steps=2, rounds=1, modes=("default",))


@pytest.fixture(scope="module")
def measured():
    """The smallest network, its rivals replaced: nothing is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attack_rivals, "compiled",
                      lambda net, x, logits, mode, form, prec: attack_rivals.loop(
                          net, x, logits, prec))  # fmt: skip
        return attack.measure("mobilenetv2", SMALL, costs=False)


def test_measures_every_loop(measured):
    assert {k.rpartition(" ")[0] if "compile" in k else k for k in measured["seconds"]} == {
        "published", "fastard fp32", "fastard bf16", "floor fp32", "floor bf16",
        "compile fp32 default", "compile bf16 default",
    }  # fmt: skip
    assert all(v["min"] > 0 and v["rounds"] == 1 for v in measured["seconds"].values())
    assert len(measured["trials"]) == 4 and all(v > 0 for v in measured["trials"].values())
    row = attack_rows({"networks": [measured]})[-1]
    assert row.startswith("| mobilenetv2, batch 2, PGD-2 |") and "of the floor's time" in row
    assert row.count("`torch.compile`") == 2
    assert cost_rows({"networks": [measured]}) == []


def test_a_rival_that_cannot_be_compiled_is_said_and_left_out(monkeypatch, capsys):
    def refuse(steps):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(attack_rivals, "compiled", lambda *a: refuse)
    found = attack_rivals.fastest(torch.nn.Identity(), None, None, ("default",), ("fp32",))
    assert found.loops == {} and set(found.trials.values()) == {None}
    assert "default nchw failed: no compiler" in capsys.readouterr().out


def seconds(**values: float) -> dict:
    named = {key.replace("_", " "): value for key, value in values.items()}
    return {key: {"min": value, "median": value, "rounds": 1} for key, value in named.items()}


TIMES = seconds(published=6.0, fastard_fp32=2.0, fastard_bf16=1.5, floor_fp32=1.0, floor_bf16=1.0,
                compile_bf16_default_nchw=3.0, compile_fp32_default_nchw=2.4,
                compile_fp32_default_last=2.2)  # fmt: skip
COSTS = {
    "refresh": {"fp32": {"share": 0.02, "seconds": 0.1}, "bf16": {"share": 0.04, "seconds": 0.1}},
    "set_up_seconds": 2.0, "memory_share": 0.6, "memory_batch": 8,
}  # fmt: skip


def by_name(lines: list[dict]) -> dict[str, dict]:
    return {row["what"]: row for row in lines}


def test_verdicts():
    found = {"model": "mobilenetv2", "batch": 32, "steps": 10, "seconds": TIMES}
    lines = by_name(summary(found))
    against = lines["fastard fp32 against the published loop"]
    assert (against["value"], against["target"], against["reached"]) == (3.0, 3.0, True)
    assert not lines["fastard bf16 against the published loop"]["reached"]
    assert not lines["fastard fp32 over the floor"]["reached"]
    assert lines["fastard bf16 over the floor"]["reached"]
    assert lines["fastard fp32 against the fastest torch.compile"]["value"] == pytest.approx(1.1)
    rival = lines["fastard bf16 against the fastest torch.compile"]
    assert (rival["value"], rival["target"], rival["reached"]) == (2.0, 1.3, True)
    assert len(lines) == 6


def test_verdicts_on_what_an_attack_costs():
    found = {"model": "resnet18", "batch": 32, "steps": 10, "seconds": TIMES, "costs": COSTS}
    lines = by_name(summary(found))
    verdicts = {what: row["reached"] for what, row in lines.items() if "fastard" not in what}
    assert verdicts == {
        "refresh fp32, share of an attack": True, "refresh bf16, share of an attack": False,
        "set-up, seconds": True, "peak memory over eager autograd's": False,
    }  # fmt: skip
    assert lines["fastard fp32 against the fastest torch.compile"]["target"] == 1.1
    assert lines["fastard bf16 against the fastest torch.compile"]["target"] == 1.3
    # The weights are renewed once an attack: of fewer steps they are a larger share.
    short = by_name(summary(found | {"steps": 4}))["refresh bf16, share of an attack"]
    assert short["target"] is None and short["reached"] is None
    rows = cost_rows({"networks": [found | {"lines": summary(found)}]})
    assert rows[-1].startswith("| resnet18 | 2.0 % (target at most 3 %) | 4.0 % (target at most 3 "
                               "%, not reached) | 2.00 s (target at most 3 s) |")  # fmt: skip


def test_records_without_the_newer_figures_still_make_a_table():
    old = {"model": "resnet18", "batch": 32, "steps": 10, "lines": [],
           "seconds": seconds(published=2.0, fastard_fp32=1.0, fastard_bf16=0.5,
                              compile_default_nchw=1.5)}  # fmt: skip
    run = {"networks": [old]}
    assert attack_rows(run)[-1].startswith("| resnet18, batch 32 | 2.00 s | 1.50 s | 1.00 s")
    assert cost_rows(run) == []


def test_a_record_keeps_the_networks_that_a_run_leaves_out(tmp_path):
    path, here = tmp_path / "run.json", {"torch": "1"}
    whole = Record(path, here, whole=True)
    whole.put({"model": "a", "n": 1})
    whole.put({"model": "b", "n": 1})
    Record(path, here, whole=False).put({"model": "a", "n": 2})
    assert json.loads(path.read_text()) == {
        "environment": here, "networks": [{"model": "a", "n": 2}, {"model": "b", "n": 1}]
    }  # fmt: skip
    with pytest.raises(ValueError, match="another machine or version"):
        Record(path, {"torch": "2"}, whole=False)
    Record(path, {"torch": "2"}, whole=True).put({"model": "b", "n": 3})
    assert [n["model"] for n in json.loads(path.read_text())["networks"]] == ["b"]


def test_the_watch_over_the_refresh_sees_it_once_an_attack_and_leaves_the_plan_alone():
    net, x = attack.network("mobilenetv2"), torch.rand(2, 3, 32, 32)
    program = Program(net, "fp32")
    with program.running(x):
        plan = program.plan
    before = [dict(kernel.__dict__) for kernel in plan.kernels]
    with attack_refresh.watched(plan) as spent, program.running(x):
        assert program.plan is plan and len(spent) == 2
        for _ in range(3):
            program.forward(x)
            program.vjp(torch.ones(2, 10))
        packs = len(spent) - 2
    assert packs <= 2 * len(plan.kernels)
    assert not {"look", "renew"} & set(plan.__dict__)
    assert [kernel.ops for kernel in plan.kernels if hasattr(kernel, "ops")] == [
        kept["ops"] for kept in before if "ops" in kept
    ]


def test_set_up_is_the_least_of_fresh_processes(monkeypatch):
    took = iter([[5.0, 2.0, 1.0], [4.0, 1.5, 1.75], [9.0, 1.0, 1.0]])
    monkeypatch.setattr(attack_process, "alone", lambda *a, **o: {"seconds": next(took)})
    assert attack_process.set_up("resnet18", 32) == 2.5


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


def test_costs_are_measured_anew_beside_the_recorded_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(attack, "beside_the_passes", lambda *a: COSTS)
    before = {"model": "mobilenetv2", "batch": 2, "steps": 1, "seconds": TIMES, "lines": []}
    found = attack.costs_again(before, attack.Case(batch=2, steps=1))
    assert found["seconds"] == TIMES and found["costs"] == COSTS
    assert found["lines"] == summary(found)
    empty = Record(tmp_path / "none.json", {}, whole=False)
    with pytest.raises(ValueError, match="holds no run of resnet18"):
        empty.get("resnet18")
