"""One case through the real machinery: agreement first, a crash is a row, the busy are told."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import (
    autoattack_contest,
    breakdown,
    declared,
    declared_attacks,
    declared_ops,
    gpu_cases,
    growth,
    layer_cases,
    memory_cases,
    op_contests,
    report,
    rivals,
    step_contests,
    timing,
)
from benchmarks.case import QUICK, Bound, Case
from benchmarks.contest import Contest, Contestant, held
from benchmarks.record import OURS, Agreement, Environment, Seconds
from benchmarks.record_file import Writer, read
from fastard import ops
from tests.api.models import small_net
from tests.ops.cases import native_only
from tests.test_gpu_kernels import on_the_host


def case(measure=None, **fields) -> Case:
    return Case("a case", "op", "t", measure, "it agrees", (QUICK,), rounds=3, **fields)


def judge(who: str, result: float) -> Agreement:
    return Agreement("the error", result, 0.5, result <= 0.5)


def crash() -> float:
    raise RuntimeError("no <such> thing\nsecond line")


def test_a_crash_and_a_disagreement_have_rows_and_the_rest_goes_on():
    contest = Contest(
        {
            "slow": Contestant(lambda: time.sleep(0.004) or 0.0, "1.0"),
            "broken": Contestant(crash, "2.0"),
            "wrong": Contestant(lambda: 0.75),
            OURS: Contestant(lambda: time.sleep(0.001) or 0.1),
        },
        judge,
        {"absent": ("unavailable", "it is not installed")},
        floor=lambda: time.sleep(0.0005), flops=10, bytes=20,
    )  # fmt: skip
    rows = list(held(case(), contest))
    assert rows[0].who == OURS and rows[0].ratio is None and rows[0].seconds.rounds == 3
    found = {row.who: row for row in rows}
    assert set(found) == {OURS, "slow", "broken", "wrong", "absent"}
    slow, broken, wrong = found["slow"], found["broken"], found["wrong"]
    assert slow.ratio == slow.seconds.min / found[OURS].seconds.min > 2
    assert found[OURS].over_floor == found[OURS].seconds.min / found[OURS].floor_seconds > 1
    assert found[OURS].flops_per_second == 10 / found[OURS].seconds.min
    assert (broken.status, broken.reason) == ("failed", "RuntimeError: no <such> thing")
    assert (broken.version, broken.seconds) == ("2.0", None)
    assert wrong.status == "disagrees" and wrong.seconds is None and not wrong.agreement.agreed
    assert "the error is 0.75, but may be 0.5 at most: it was not timed" in wrong.reason
    assert (found["absent"].status, found["absent"].stable) == ("unavailable", None)


@pytest.mark.parametrize("many", [False, True])
def test_a_crash_while_timed_costs_its_contestant_alone(many):
    calls = iter(range(2))
    contest = Contest(
        {"late": Contestant(lambda: 0.0 if next(calls, None) == 0 else crash(), "2.0"),
         OURS: Contestant(lambda: 0.1)},
        judge, many=many,
    )  # fmt: skip
    rows = {row.who: row for row in held(case(), contest)}
    assert rows[OURS].status == "measured" and rows[OURS].seconds.rounds == 3
    assert (rows["late"].status, rows["late"].version) == ("failed", "2.0")
    assert rows["late"].reason == "while it was timed, RuntimeError: no <such> thing"


def test_a_result_that_cannot_be_judged_is_its_contestants_failure():
    def apart(who: str, result: float) -> Agreement:
        if who == "odd":
            raise RuntimeError("The size of tensor a (3) must match")
        return judge(who, result)

    contest = Contest({"odd": Contestant(lambda: 0.0), OURS: Contestant(lambda: 0.0)}, apart)
    rows = {row.who: row for row in held(case(), contest)}
    assert rows["odd"].reason == "RuntimeError: The size of tensor a (3) must match"
    assert (rows["odd"].status, rows[OURS].status) == ("failed", "measured")


def test_a_nan_agrees_with_nothing_and_is_reported(tmp_path):
    nan = Contest({"r": Contestant(lambda: math.nan), OURS: Contestant(lambda: 0.0)}, judge)
    path = tmp_path / "bench.jsonl"
    writer = Writer(path, Environment("quick", {}, {}, {}, "now", "0"))
    for row in held(case(), nan):
        writer.put(row)
    rows = {r.who: r for r in read(path).results}
    assert rows["r"].status == "disagrees" and rows["r"].agreement.value is None
    assert report.write(path, tmp_path / "out")[0].exists()


def test_nothing_of_ours_is_timed_when_it_disagrees():
    rows = list(held(case(), Contest({OURS: Contestant(lambda: 1.0), "r": Contestant(lambda: 0.0)},
                                     judge)))  # fmt: skip
    assert rows[0].who == OURS and rows[0].status == "disagrees"
    assert rows[1].ratio is None and rows[1].seconds is not None


def test_turns_warm_up_count_and_end():
    seen: list[str] = []
    loops = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    samples, _ = timing.turns(loops, rounds=4, warm_up=2, before=lambda: seen.append("-"))
    assert "".join(seen) == "-a-b-b-a" * 1 + "-a-b-b-a-a-b-b-a"
    assert [len(v) for v in samples.values()] == [4, 4]
    samples, _ = timing.turns(loops, rounds=9, warm_up=0, most=0.0)
    assert len(samples["a"]) == 1


@pytest.mark.parametrize(
    ("spread", "rounds", "others", "said"),
    [
        (0.01, 5, 0.0, None),
        (0.01, 5, None, None),
        (0.01, 5, 0.4, "the machine was busy: others used 40% of its cores"),
        (0.01, 2, 0.0, "it was timed 2x, too few"),
        (0.5, 5, 0.0, "spreads over 50% of the median"),
    ],
)
def test_what_is_not_stable_says_why(spread, rounds, others, said):
    watch = timing.Watch()
    watch.others = others
    found = timing.unstable(Seconds(1.0, 1.0, spread, rounds), watch)
    assert found == said if said is None else said in found


def test_the_watch_leaves_this_process_out():
    if not timing.STAT.exists():
        pytest.skip("the system has no /proc/stat")
    with timing.Watch() as watch:
        end = time.perf_counter() + 0.2
        while time.perf_counter() < end:
            sum(range(1000))
    assert 0 <= watch.others <= 1


def test_targets_are_told_reached_missed_and_not_measured():
    bounds = (Bound("least", 2.0, "slow"), Bound("most", 1.25, figure="over_floor"),
              Bound("least", 1.0, "absent"), Bound("least", 9.0, "slow", needs="AMX"))  # fmt: skip
    one = case(bounds=bounds)
    results = [one.line(OURS, over_floor=1.5), one.line("slow", ratio=2.5),
               one.line("absent", "unavailable", reason="not there")]  # fmt: skip
    faster, floor, absent, amx = one.targets(results, {"amx": False})
    assert (faster.value, faster.reached, faster.at) == (2.5, True, "least")
    assert (floor.value, floor.reached, floor.figure) == (1.5, False, "of the floor's time")
    assert (absent.value, absent.reached, absent.reason) == (None, None, "not there")
    assert amx.reached is False and "meant for AMX" in amx.name
    (nothing,) = case(bounds=bounds[1:2]).targets([], {})
    assert (nothing.value, nothing.reason) == (None, "it was not measured")


def small(loss: str, **settings) -> Case:
    return declared_attacks.attack(
        "small_cnn", (QUICK,), loss, batch=2, steps=2, rounds=2, **settings
    )


@pytest.mark.parametrize("loss", ["kl", "ce", "trades", "pair", "iad"])
def test_attacks_agree_with_the_published_loops(loss):
    settings = {"teacher": "small_cnn"} if loss == "pair" else {}
    rows = list(small(loss, **settings).measure(small(loss, **settings)))
    assert [(r.who, r.status) for r in rows] == [
        (OURS, "measured"), ("published loop", "measured")], [r.reason for r in rows]  # fmt: skip
    assert all(r.agreement.agreed and r.ratio != 0 for r in rows)
    if loss == "kl":
        assert rows[0].floor_seconds > 0 and rows[0].flops > 0


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_library_attacks_agree_or_say_why_not(norm):
    one = small("ce", norm=norm, against=declared_attacks.LIBRARIES)
    rows = {row.who: row for row in one.measure(one)}
    assert set(rows) == {OURS, "published loop", *declared_attacks.LIBRARIES}
    for name in declared_attacks.LIBRARIES:
        installed = rivals.RIVALS[name].package is None or rivals.versions()[name] is not None
        row = rows[name]
        if installed and not (name == "adv-lib" and norm == "L2"):
            assert row.status in ("measured", "unavailable"), row.reason
        else:
            assert row.status == "unavailable" and row.reason


def test_an_installed_rival_that_cannot_be_imported_says_why(monkeypatch):
    monkeypatch.setattr(rivals, "version", lambda package: "1")
    with pytest.raises(rivals.Absent, match="foolbox cannot be imported: ModuleNotFoundError"):
        rivals.imported("foolbox", "no_such_module_at_all")


@native_only
@pytest.mark.parametrize(
    "op",
    [
        layer_cases.EpilogueCase((2, 4, 5, 5)), layer_cases.EpilogueBackwardCase((2, 4, 5, 5)),
        layer_cases.DepthwiseCase((2, 16, 5, 5)), layer_cases.NormStartCase((3, 2, 4, 4)),
        *(layer_cases.LabelLossCase((3, 10), kind=kind) for kind in ("ce", "margin", "dlr")),
    ],
    ids=lambda op: op.name,
)  # fmt: skip
def test_ops_agree_with_fp64(op):
    made = declared_ops.op(op, (QUICK,), "t")
    one = Case(**{**made.__dict__, "rivals": (), "seconds": 0.0, "rounds": 2})
    rows = {row.who: row for row in one.measure(one)}
    assert set(rows) == {OURS, "eager", "copy_"}
    assert all(row.status == "measured" for row in rows.values()), rows
    assert rows[OURS].bytes == op.bytes() and rows[OURS].share_of_copy > 0
    # What torch.compile gets is the same function.
    s = op.inputs("cpu", torch.Generator().manual_seed(0))
    for a, b in zip(op.formula()(*op.arguments(s)), op.chain()(*op.arguments(s)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@native_only
def test_an_op_on_a_gpu_is_timed_from_replayed_graphs(monkeypatch):
    on_the_host(monkeypatch)
    properties = SimpleNamespace(L2_cache_size=4096)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    made = declared_ops.op(gpu_cases.StepCase((2, 3, 8, 8)), (QUICK,), "t")
    rows = {r.who: r for r in op_contests.on_gpu(Case(**{**made.__dict__, "rivals": ()}))}
    assert set(rows) == {OURS, "eager", "copy_"}
    assert rows[OURS].agreement.agreed and rows[OURS].share_of_copy > 0
    assert rows["eager"].ratio > 0 and rows[OURS].seconds.rounds >= 20

    monkeypatch.setattr(ops, "pgd_step_", lambda own, *rest, **options: own)
    rows = {r.who: r for r in op_contests.on_gpu(Case(**{**made.__dict__, "rivals": ()}))}
    assert rows[OURS].status == "disagrees" and rows["eager"].status == "measured"


def test_growth_is_fitted_to_the_logarithms():
    found = growth.fitted("batch", [1, 2, 4], [3.0, 12.0, 48.0])
    assert found.exponent == pytest.approx(2.0) and found.off == pytest.approx(0.0, abs=1e-9)
    assert growth.fitted("batch", [1, 2, 4], [3.0, 12.0, 96.0]).off > 0.2


def test_growth_measures_every_size():
    base = declared.beside(small("kl"), "scaling", "growth", "t", growth.measure, (QUICK,),
                           over="steps", sizes=(1, 3), floor=False)  # fmt: skip
    ours, theirs = base.measure(base)
    assert ours.series.x == [1, 3] and len(theirs.series.seconds) == 2 and ours.steps is None
    assert ours.case == "growth" and math.isfinite(ours.series.exponent)


def test_parts_of_an_attack_sum_to_it():
    base = declared.beside(small("kl"), "breakdown", "parts", "t", breakdown.measure, (QUICK,))
    (line,) = base.measure(base)
    assert sum(line.breakdown.values()) == pytest.approx(line.seconds.min, rel=1e-6)
    assert {"convolutions and products", "step", "loss", "gaps"} <= set(line.breakdown)


def test_kernels_of_a_gpu_are_told_by_their_names():
    parts = breakdown.by_name([
        ("void fastard::linf_kernel<...>", 1.0), ("sm90_xmma_fprop_implicit_gemm_tf32", 4.0),
        ("void fastard::epilogue_kernel<...>", 2.0), ("void at::native::elementwise", 0.5),
        ("void fastard::warp_rows<KL>", 0.25), ("fold_kernel", 0.125)])  # fmt: skip
    assert parts == {"step": 1.0, "convolutions and products": 4.0, "epilogues": 2.0,
                     "other kernels": 0.5, "loss": 0.25, "renewed weights": 0.125}  # fmt: skip


def test_a_methods_step_beside_eager_autograd():
    one = next(c for c in declared.on_steps() if c.name.startswith("training step rslad small_cnn"))
    one = Case(**{**one.__dict__, "batch": 2, "rounds": 1})
    ours, eager = step_contests.against_eager(one)
    assert ours.status == eager.status == "measured" and eager.who == "eager autograd"


def test_a_step_beside_the_published_scripts(monkeypatch):
    def build(name, classes=10, seed=0):
        net = small_net(seed=int(name.startswith("wrn")))
        for module in net.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # else two forwards of one input differ
        return net.train()

    monkeypatch.setattr(step_contests.networks, "build", build)
    one = next(c for c in declared.on_steps() if c.name == "training step rslad resnet18 fp32 b32")
    one = Case(**{**one.__dict__, "batch": 4, "rounds": 1})
    ours, theirs = step_contests.against_published(one)
    assert ours.status == theirs.status == "measured" and theirs.ratio > 0
    assert {"attack", "student", "backward", "rest"} <= set(ours.breakdown)
    assert ours.agreement.what.startswith("the update of one step")

    def apart(*_):
        raise RuntimeError("rslad: the update is 1 away; nothing was timed.")

    monkeypatch.setattr(step_contests.step_agreement, "agreement", apart)
    (line,) = step_contests.against_published(one)
    assert line.status == "disagrees" and line.reason.endswith("nothing was timed.")


def test_memory_is_told_beside_the_published_loops(monkeypatch):
    peaks = {"fastard": 50, "eager": 200}
    monkeypatch.setattr(memory_cases.attack_process, "alone",
                        lambda model, how, **options: {"peak_bytes": peaks[how]})  # fmt: skip
    one = next(c for c in declared.on_the_rest() if c.group == "memory")
    ours, theirs = one.measure(one)
    assert (ours.peak_bytes, ours.memory_ratio) == (50, None)
    assert (theirs.peak_bytes, theirs.memory_ratio) == (200, 4.0)
    peaks.update(dict.fromkeys(peaks))
    assert {r.status for r in one.measure(one)} == {"unavailable"}


def test_autoattack_says_that_it_is_not_there(monkeypatch):
    monkeypatch.setattr(autoattack_contest, "fastard", SimpleNamespace(__version__="0"))
    one = next(c for c in declared.on_the_rest() if c.group == "autoattack")
    ours, official = autoattack_contest.measure(one)
    assert ours.status == "unavailable" and "has no AutoAttack" in ours.reason
    assert official.status == "skipped"


def test_autoattack_without_the_official_package_is_skipped(monkeypatch):
    def absent(*names):
        raise rivals.Absent("pyautoattack is not installed")

    monkeypatch.setattr(autoattack_contest.rivals, "imported", absent)
    one = next(c for c in declared.on_the_rest() if c.group == "autoattack")
    ours, official = autoattack_contest.measure(Case(**{**one.__dict__, "batch": 2}))
    assert ours.status == "skipped" and ours.reason.startswith("there is nothing to agree with")
    assert (official.status, official.reason) == ("unavailable", "pyautoattack is not installed")


@pytest.mark.parametrize(
    ("broken", "status", "official"),
    [([0, 1], "measured", "measured"), ([0], "measured", "measured"), ([], "disagrees", "measured"),
     ([2, 3], "disagrees", "measured"), ([0, 1], "skipped", "failed")],
)  # fmt: skip
def test_autoattack_is_timed_where_its_verdicts_are_the_officials(
    monkeypatch, broken, status, official
):
    class Stand:
        """Breaks some images by handing out others, which the network takes for another class."""

        def __init__(self, model, broken=broken, **options):
            self.broken = broken

        def run_standard_evaluation(self, x, y, bs=0, batch_size=0):
            moved = x.clone()
            moved[self.broken] = math.nan
            return crash() if batch_size and official == "failed" else moved

    ours = SimpleNamespace(__version__="0", AutoAttack=Stand)
    monkeypatch.setattr(autoattack_contest, "fastard", ours)
    theirs = SimpleNamespace(AutoAttack=lambda model, **options: Stand(model, [0, 1]))
    monkeypatch.setattr(autoattack_contest.rivals, "imported", lambda *names: theirs)
    monkeypatch.setattr(autoattack_contest, "surviving",
                        lambda net, x, y: ~x.isnan().flatten(1).any(1))  # fmt: skip
    one = next(c for c in declared.on_the_rest() if c.group == "autoattack")
    rows = {r.who: r for r in autoattack_contest.measure(Case(**{**one.__dict__, "batch": 4}))}
    assert (rows[OURS].status, rows["pyautoattack"].status) == (status, official)
    if status != "skipped":
        # Two broken images each, but others: as many survive, and all four verdicts differ.
        assert rows[OURS].agreement.value == len({0, 1} ^ set(broken))
