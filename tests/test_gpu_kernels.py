"""The GPU benchmark's cases, checked without a GPU: bytes, agreement, figures, the smoke."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks import (
    gpu_attack,
    gpu_attack_summary,
    gpu_cases,
    gpu_kernels,
    gpu_smoke,
    gpu_summary,
    gpu_timing,
    timing,
)
from benchmarks.gpu_case import outputs
from benchmarks.gpu_figures import figures
from benchmarks.gpu_record import load
from fastard import native, ops
from fastard.kinds import LossKind
from tests.api.models import small_net
from tests.ops.cases import native_only

# Many differ in size alone.
CASES = list({case.name: case for case in map(gpu_kernels.small, gpu_cases.CASES)}.values())
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
LINF = gpu_kernels.small(gpu_cases.StepCase((8, 3, 8, 8)))


def drawn(case):
    return case.inputs("cpu", torch.Generator().manual_seed(0))


def names(op, **wanted):
    found = [case for case in gpu_cases.CASES if type(case) is op]
    return [case for case in found if all(getattr(case, k) == v for k, v in wanted.items())]


@every_case
def test_bytes_are_each_input_once_and_each_output_once(case):
    s = drawn(case)
    read = sum(s[name].nbytes for name in case.reads)
    written = sum(t.nbytes for t in case.fastard(s))
    assert case.bytes() == read + written


def test_the_cases_and_their_targets():
    """The issue's sizes; a megabyte is 2**20 bytes."""
    by_name = {case.name: case for case in gpu_cases.CASES}
    assert len(by_name) == len(gpu_cases.CASES)
    step, loss = gpu_cases.StepCase, gpu_cases.LossCase
    large = [case for case in names(step, norm="Linf") if not case.resident]
    assert {case.shape for case in large} == {(32, 3, 224, 224), (128, 3, 224, 224)}
    for case in large:
        assert case.bytes() >= 64 * 2**20
        assert case.targets == {"copy": 0.9, "compile": 1.0, "eager": 4.0}
    (cached,) = names(step, resident=True)
    assert cached.shape == (128, 3, 32, 32) and cached.targets["launch"] == 1.2
    for norm, share in (("L2", 0.8), ("L1", 0.5)):
        cases = names(step, norm=norm)
        assert {c.shape[1:] for c in cases} == {(3, 32, 32), (3, 64, 64), (3, 224, 224)}
        for case in cases:
            assert case.targets == {"copy": share, "compile": 1.2, "eager": 4.0}
    for dtype in ("float32", "bfloat16"):
        (case,) = names(loss, shape=(8192, 1000), dtype=dtype)
        assert case.targets == {"copy": 0.85, "compile": 1.2, "eager": 4.0}
    untimed = {case.name for case in gpu_cases.CASES if not case.targets}
    assert {"logit_loss kl 512x21843 float32", "distill_kl 128x10 float32"} <= untimed


def test_iterates_lie_in_the_ball():
    for norm, (eps, _) in gpu_cases.BOUNDS.items():
        s = drawn(gpu_cases.StepCase((4, 3, 16, 16), norm=norm))
        order = {"Linf": math.inf, "L2": 2, "L1": 1}[norm]
        length = (s["x_adv"] - s["x"]).flatten(1).norm(order, 1)
        assert (length <= eps * 1.001).all() and (length > eps / 2).all()


@native_only
def test_every_case_agrees_on_the_cpu(tmp_path, capsys):
    path = tmp_path / "record.json"
    assert gpu_kernels.main(["--record", str(path), "--device", "cpu"]) == 0
    found = json.loads(path.read_text())["kernels"]
    assert set(found["cases"]) == {case.name for case in gpu_cases.CASES}
    assert found["left_out"] == []
    for case in found["cases"].values():
        assert set(case["agreement"]) == {"native", "eager", "compile"}
        assert case["failures"] == [] and "seconds" not in case
        assert list(case["unavailable"]) == ["triton"]


def test_cases_beyond_the_time_are_named(tmp_path):
    path = tmp_path / "record.json"
    arguments = ["--record", str(path), "--device", "cpu", "--seconds", "-1"]
    assert gpu_kernels.main(arguments) == 0
    left_out = json.loads(path.read_text())["kernels"]["left_out"]
    assert left_out == [case.name for case in gpu_cases.CASES]


def unmoved(x_adv, *_, **__):
    return x_adv


def unwritten(x_adv, *_, **__):
    return x_adv.fill_(float("nan"))


def dies(*_, **__):
    raise RuntimeError("out of order\nand more")


@pytest.mark.parametrize(
    ("wrong", "said"), [(unmoved, "is off by"), (unwritten, "off by nan"), (dies, "out of order")]
)
def test_a_wrong_op_is_a_failure(monkeypatch, wrong, said):
    monkeypatch.setattr(ops, "pgd_step_", wrong)
    found = gpu_kernels.run_case(LINF, "cpu", None)
    assert len(found["failures"]) == 1
    assert found["failures"][0].startswith(f"{LINF.name}: native") and said in found["failures"][0]
    assert "and more" not in found["failures"][0]


def test_a_wrong_rival_is_a_failure(monkeypatch):
    monkeypatch.setitem(gpu_cases.STEPS, "Linf", lambda x_adv, *_: x_adv)
    failures = gpu_kernels.run_case(LINF, "cpu", None)["failures"]
    assert len(failures) == 2 and all("is off by" in sentence for sentence in failures)


def test_small_gradients_are_compared_by_their_own_scale():
    case = gpu_cases.DistillCase((1000, 10))
    s = drawn(case)
    loss, grad = case.exact(s)
    assert gpu_kernels.error(case, (loss, grad * 1.01), (loss, grad)) == pytest.approx(0.01)


@native_only
def test_the_backend_is_chosen_and_given_back(monkeypatch):
    monkeypatch.delenv("FASTARD_BACKEND", raising=False)
    with gpu_kernels.backend("reference"):
        assert ops.backend("pgd_step_", "cpu").name == "reference"
    assert ops.backend("pgd_step_", "cpu").name == "native"
    with pytest.raises(RuntimeError, match="FASTARD_BACKEND=native"):
        with gpu_kernels.backend("native"):
            ops.backend("pgd_step_", "mps")


class Repeats:
    """Stands for a CUDA graph: replaying runs the calls again."""

    def __init__(self, call, sets, rounds):
        self.kept = [None] * sets
        self.call, self.sets, self.rounds = call, sets, rounds

    def replay(self):
        for _ in range(self.rounds):
            for k in range(self.sets):
                self.kept[k] = self.call(k)


def on_the_host(monkeypatch, make=Repeats):
    """Timing without a device."""

    def captured(call, size, sets):
        graph = make(call, sets, 3)
        graph.replay()
        return gpu_timing.Graph(graph, 3 * sets, graph.kept)

    class Event(SimpleNamespace):
        def record(self):
            self.at = gpu_timing.time.perf_counter()

        def synchronize(self):
            assert self.at

        def elapsed_time(self, other):
            return 1e3 * (other.at - self.at)

    monkeypatch.setattr(gpu_timing, "captured", captured)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@native_only
@pytest.mark.parametrize("resident", [False, True])
def test_timing_gives_every_figure(monkeypatch, resident):
    on_the_host(monkeypatch)
    targets = {"copy": 0.0, "compile": 0.0, "eager": 1e9, "launch": 1e9}
    case = dataclasses.replace(LINF, targets=targets, resident=resident)
    found = gpu_kernels.run_case(case, "cpu", l2=4096)
    assert found["failures"] == []
    assert set(found["seconds"]) == {"native", "eager", "compile", "copy", "empty"}
    for times in found["seconds"].values():
        assert 0 < times["min"] <= times["p10"] <= times["median"] <= times["p90"] <= times["max"]
        assert times["replays"] >= 20
    assert found["sets"] == (1 if resident else math.ceil(4 * 4096 / case.bytes()) + 1)
    reached = {row["target"]: row["reached"] for row in found["targets"]}
    assert reached == {"copy": True, "compile": True, "eager": False, "launch": True}


@native_only
def test_a_graph_that_holds_nothing_is_found(monkeypatch):
    class Empty(Repeats):
        def replay(self):
            self.kept[:] = [outputs(self.call(k)) for k in range(self.sets)]
            self.replay = lambda: None

    on_the_host(monkeypatch, Empty)
    calls, _ = gpu_kernels.candidates(LINF, "cpu")
    _, failures = gpu_kernels.timed(LINF, {"native": calls["native"]}, 4096, "cpu")
    assert failures == [f"{LINF.name}: native computes something else when replayed"]


def test_sets_fill_the_cache_four_times_and_calls_a_few_milliseconds():
    l2 = 50 * 2**20
    for case in gpu_cases.CASES:
        sets = gpu_timing.sets_for(case.bytes(), l2, case.resident)
        rounds = gpu_timing.rounds_for(case.bytes(), sets)
        assert 1 <= sets * rounds <= gpu_timing.MOST_CALLS
        if case.targets and not case.resident:
            assert sets * case.bytes() > 4 * l2
    assert gpu_timing.rounds_for(10**6, 4, call=1.0) == 1


def seconds(**medians):
    return {name: {"median": value} for name, value in medians.items()}


def test_figures():
    case = dataclasses.replace(LINF, targets={"copy": 0.9, "compile": 1.2, "launch": 1.2})
    found = figures(case, seconds(native=2.0, triton=4.0, copy=1.8, compile=3.0, empty=0.5))
    assert found["bytes"] == case.bytes()
    assert found["share_of_copy"] == {"native": 0.9, "triton": 0.45}
    assert found["times_faster_than"] == {"compile": 1.5}
    assert found["gigabytes_per_second"]["native"] == case.bytes() / 2e9
    copy, compiled, launch = found["targets"]
    assert copy["reached"] and copy["value"] == 0.9 == copy["at_least"]
    assert compiled["reached"] and compiled["value"] == 1.5
    assert launch["reached"] and launch["at_most"] == pytest.approx(2.66)
    slow = figures(case, seconds(native=2.7, copy=1.8, compile=3.0, empty=0.5))["targets"]
    assert [row["reached"] for row in slow] == [False, False, False]


def test_what_was_not_timed_is_not_reached():
    targets = {"copy": 0.0, "compile": 0.0, "eager": 0.0, "launch": 9.0}
    rows = figures(dataclasses.replace(LINF, targets=targets), seconds(copy=1.0))["targets"]
    assert [(row["value"], row["reached"]) for row in rows] == [(None, False)] * 4


@native_only
def test_the_smoke_is_right_on_the_cpu(capsys):
    assert gpu_smoke.main(["--device", "cpu"]) == 0
    count = len(list(gpu_smoke.runs("cpu")))
    assert f"gpu_smoke: {count} of {count} right, 0 left out" in capsys.readouterr().out


def test_the_smoke_meets_every_op_norm_kind_and_row_length():
    said = " | ".join(name for name, _ in gpu_smoke.runs("cpu"))
    wanted = ["random_start_ gaussian", "distill_kl none", "distill_kl batchmean", "feed"]
    wanted += [f"pgd_step_ {n}" for n in ("Linf", "L2", "L1")]
    wanted += [f"random_start_ uniform {n}" for n in ("Linf", "L2", "L1")]
    wanted += [f"logit_loss {kind.name}{aim}" for kind in LossKind for aim in ("", " targeted")]
    wanted += [f"[5, {classes}]" for classes in (10, 100, 1000, 1030, 1032)]
    assert [part for part in wanted if part not in said] == []


def test_the_smoke_finds_a_wrong_op(monkeypatch, capsys):
    monkeypatch.setattr(gpu_smoke, "runs", lambda device: iter([
        ("right", lambda: ((torch.ones(2),), (torch.ones(2).double(),))),
        ("nan", lambda: ((torch.full((2,), float("nan")),), (torch.ones(2).double(),))),
        ("off", lambda: ((torch.ones(2),), (torch.tensor([1.0, 1.001]).double(),))),
        ("dead", dies),
    ]))  # fmt: skip
    assert gpu_smoke.main(["--device", "cpu", "--backends", "reference"]) == 1
    said = capsys.readouterr().out
    assert said.count("WRONG reference") == 3 and "gpu_smoke: 1 of 4 right" in said
    late = ["--device", "cpu", "--backends", "reference", "--seconds", "-1"]
    assert gpu_smoke.main(late) == 0
    assert "0 of 0 right, 4 left out" in capsys.readouterr().out


def test_the_attacks_agree_on_the_cpu():
    model, x, teacher = small_net().eval(), torch.rand(4, 3, 8, 8), torch.randn(4, 10)
    floors = {"floor tf32": lambda: None}
    found = gpu_attack.compare(model, x, teacher, timing.by_host, floors)
    assert found["failures"] == [] and found["pixels_that_differ"]["fastard tf32"] == 0
    loops = {"published", "eager bf16 channels_last", "fastard tf32", "fastard bf16"}
    assert set(found["loss_reached"]) == loops
    assert set(found["median_seconds"]) == loops | {"floor tf32"}
    assert all(len(taken) == 5 for taken in found["seconds"].values())
    assert found["captured"] == dict.fromkeys(("tf32", "bf16"), "no: cpu has no graphs")


def test_a_weak_attack_is_a_failure(monkeypatch):
    model, x, teacher = small_net().eval(), torch.rand(4, 3, 8, 8), torch.randn(4, 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    monkeypatch.setattr(gpu_attack.fastard, "pgd_kl", lambda model, x, *_, **__: x.clone())
    assert "losses reached differ" in gpu_attack.compare(
        model, x, teacher, timing.by_host)["failures"][0]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "case", {type(case): case for case in CASES}.values(), ids=lambda case: case.name
)
def test_timing_on_the_device(case):
    if not native.cuda()[0]:
        pytest.skip(native.cuda()[1])
    found = gpu_kernels.run_case(case, "cuda", l2=2**16)
    assert found["failures"] == []
    assert {"native", "eager", "compile", "copy"} <= set(found["seconds"])


def test_the_smoke_meets_every_kernel_before_any_twice():
    order = gpu_smoke.in_order("cpu")
    firsts = [first for first, _, _ in order]
    assert firsts == sorted(firsts, reverse=True)
    kernels = {gpu_smoke.kernel_of(name) for _, name, _ in order}
    assert len(kernels) == sum(firsts) > 60
    assert sorted(n for _, n, _ in order) == sorted(n for n, _ in gpu_smoke.runs("cpu"))


def test_a_kernel_that_the_smoke_did_not_meet_is_a_failure(capsys):
    assert gpu_smoke.main(["--device", "cpu", "--seconds", "-1"]) == 1
    assert "left out, and no other of its kernel ran" in capsys.readouterr().out


def test_targets_stand_before_anything_is_measured(tmp_path, monkeypatch):
    record = tmp_path / "record.json"
    gpu_kernels.main(["--record", str(record), "--device", "cpu", "--seconds", "-1"])
    later = list(gpu_attack_summary.targets({}))
    rows = gpu_summary.targets(load(record))
    assert [row for row in rows if row in later] == later
    assert len(rows) - len(later) == sum(len(case.targets) for case in gpu_cases.CASES)
    assert not any(row["reached"] for row in rows)
