"""`fastard bench`: lines as they come, a killed run, a baseline, declared suites, bad input."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import baseline, bench, declared, record_file, step_summary
from benchmarks.case import CPU, FULL, GPU, QUICK, Bound, Case
from benchmarks.contest import Contest, Contestant, held
from benchmarks.record import GROUPS, OURS, Agreement, Environment, Seconds
from fastard import cli

ROOT = Path(__file__).parents[2]
HERE = Environment("quick", {"cpu": "c", "cores": 2, "threads": 2, "isa": "i"}, {}, {}, "now", "0")


def quick(name: str, wait: float = 0.002, status: str = "measured", **fields) -> Case:
    def measure(case):
        if status == "raises":
            raise OSError("no more room\nat all")
        loops = {OURS: Contestant(lambda: time.sleep(wait)),
                 "rival": Contestant(lambda: time.sleep(0.002))}  # fmt: skip
        return held(case, Contest(loops, lambda *_: Agreement("e", 0.0, 1.0, True)))

    return Case(name, "op", "t", measure, "a", (QUICK,), rounds=3, precision="fp32", **fields)


def silent() -> Console:
    return Console(file=io.StringIO(), width=200)


def measured(tmp_path: Path, *cases: Case, **options) -> record_file.Run:
    path = tmp_path / "bench.jsonl"
    bench.measure(cases, path, HERE, options.pop("seconds", None), silent(), **options)
    return record_file.read(path)


def test_a_case_that_fails_has_a_line_and_the_rest_goes_on(tmp_path):
    bound = Bound("least", 1000.0, "rival")
    run = measured(tmp_path, quick("bad", status="raises"), quick("good", bounds=(bound,)))
    bad, ours, rival = run.results
    assert (bad.case, bad.status, bad.reason) == ("bad", "failed", "OSError: no more room")
    assert ours.who == OURS and rival.ratio > 0 and run.complete
    (target,) = run.targets
    assert target.value == rival.ratio and target.reached is False


def test_what_no_time_is_left_for_and_what_needs_a_gpu_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: False)
    (line,) = measured(tmp_path, quick("late"), seconds=-1.0).results
    assert (line.status, line.reason) == ("skipped", "no time was left for it")
    bound = Bound("least", 4.0, "rival", needs="H200")
    run = measured(tmp_path, quick("gpu", device="cuda", bounds=(bound,)))
    assert run.results[0].reason == run.targets[0].reason or run.targets[0].value is None
    assert run.results[0].reason == "torch sees no CUDA device"


def test_a_killed_run_keeps_what_it_has(tmp_path):
    path = tmp_path / "bench.jsonl"
    code = f"""
import time
from pathlib import Path
from tests.bench import test_bench_runs as t
slow = t.quick("slow", wait=60)
t.bench.measure([t.quick("done"), slow], Path({str(path)!r}), t.HERE, None, t.silent())
"""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env)
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if path.exists() and path.read_text().count("\n") >= 3:
                break
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    run = record_file.read(path)
    assert [r.case for r in run.results] == ["done", "done"] and not run.complete


def older(path: Path, **changed) -> record_file.Run:
    """The run at `path` with another time of fastard's."""
    run = record_file.read(path)
    run.results = [
        dataclasses.replace(r, seconds=Seconds(**{**vars(r.seconds), **changed}))
        if r.who == OURS else r for r in run.results
    ]  # fmt: skip
    return run


def compared(old: record_file.Run, run: record_file.Run):
    machine = run.environment.machine
    (line,) = baseline.compare(old, "one", run.results, machine, "a/old.jsonl")
    return line


def test_a_slow_down_beyond_the_noise_is_named(tmp_path):
    run = measured(tmp_path, quick("one"))
    path, now = tmp_path / "bench.jsonl", run.results[0].seconds
    run = older(path, spread=0.01)
    line = compared(older(path, min=now.min / 2, spread=0.01), run)
    assert line.slower and line.change == pytest.approx(2) and line.same_machine
    assert line.baseline == "old.jsonl" and line.noise == 0.05
    assert not compared(older(path, min=10.0), run).slower
    assert not compared(older(path, min=now.min / 1.04, spread=0.01), run).slower
    assert not compared(older(path, min=now.min / 1.2, spread=0.3), run).slower
    assert list(baseline.compare(run, "another", run.results, HERE.machine, "old")) == []
    again = measured(tmp_path, quick("one"), old=older(path, min=1e-6), given="old")
    assert [line.slower for line in again.comparisons] == [True]


def test_on_another_machine_the_rivals_are_the_measure(tmp_path):
    measured(tmp_path, quick("one"))
    run, old = (older(tmp_path / "bench.jsonl", spread=0.01) for _ in range(2))
    old.environment = dataclasses.replace(HERE, machine={**HERE.machine, "cpu": "another"})
    # Everything ten times faster there: nothing is slower here.
    old.results = [
        dataclasses.replace(r, seconds=Seconds(**{**vars(r.seconds), "min": r.seconds.min / 10}))
        for r in old.results
    ]
    line = compared(old, run)
    assert not line.same_machine and not line.slower and line.change == pytest.approx(1)
    old.results = [dataclasses.replace(r, ratio=r.ratio and 5 * r.ratio) for r in old.results]
    line = compared(old, run)
    assert line.slower and line.change == pytest.approx(5)


def test_the_status_is_1_where_something_is_slower(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(declared, "everything", lambda: [quick("one"), quick("two")])
    out = tmp_path / "out"
    command = ["bench", "--suite", "quick", "--out", str(out)]
    assert cli.main([*command, "--case", "one"]) == 0
    lines = (out / "bench.jsonl").read_text().splitlines()
    changed = [json.loads(line) for line in lines]
    for line in changed:
        if line.get("who") == OURS:
            line["seconds"]["min"] /= 10
            line["seconds"]["spread"] = 0.0
    old = tmp_path / "old.jsonl"
    old.write_text("".join(json.dumps(line) + "\n" for line in changed))
    assert (out / "report.html").exists() and (out / "report.md").exists()
    assert cli.main([*command, "--baseline", str(old)]) == 1
    told = capsys.readouterr().out
    assert "slower: one takes" in told and " times what it took in old.jsonl" in told
    assert "1 of 2 cases compared" in told
    old.write_text(old.read_text().replace('"min": 0.0', '"min": 9.0'))
    assert cli.main([*command, "--baseline", str(old), "--case", "one"]) == 0
    capsys.readouterr()
    assert cli.main([*command, "--baseline", str(old), "--case", "two"]) == 2
    assert "must hold a time for one of the cases measured" in capsys.readouterr().err
    cases = [quick("one", status="raises"), quick("two")]
    monkeypatch.setattr(declared, "everything", lambda: cases)
    assert cli.main([*command, "--baseline", str(old)]) == 1
    assert "failed: one, which the baseline has a time for: OSError" in capsys.readouterr().out


def test_a_baseline_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys):
    old = tmp_path / "old.jsonl"
    old.write_bytes(b"\xff\xfe\x00")
    assert cli.main(["bench", "--out", str(tmp_path / "out"), "--baseline", str(old)]) == 2
    assert f"{old} is no text in UTF-8" in " ".join(capsys.readouterr().err.split())

    def run(command, **options):
        raise subprocess.TimeoutExpired(command, 30)

    monkeypatch.setattr(baseline.subprocess, "run", run)
    with pytest.raises(ValueError, match="but is 'v1': Command .* timed out after 30 seconds"):
        baseline.load("v1", "cpu")


def test_an_interrupted_run_says_where_its_lines_are(tmp_path, monkeypatch, capsys):
    def interrupted(case):
        raise KeyboardInterrupt

    cases = [quick("one"), dataclasses.replace(quick("two"), measure=interrupted)]
    monkeypatch.setattr(declared, "everything", lambda: cases)
    assert cli.main(["bench", "--out", str(tmp_path)]) == 130
    assert "bench.jsonl holds what was measured" in " ".join(capsys.readouterr().out.split())
    run = record_file.read(tmp_path / "bench.jsonl")
    assert {r.case for r in run.results} == {"one"} and not run.complete


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite", "quik"], "unknown suite 'quik' (did you mean 'quick'?)"),
        (["--case", "no such case"], "fits none of the"),
        (["--case", "("], "must be a regular expression"),
        (["--minutes", "0"], "--minutes must be at least 0.1, but is 0"),
        (["--baseline", "no-such-commit"], "must be a result file or a commit that holds"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, arguments, said):
    assert cli.main(["bench", "--out", str(tmp_path / "out"), *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_the_gpu_suite_needs_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "--suite", "gpu", "--out", str(tmp_path / "out")]) == 2
    assert "--suite gpu needs a CUDA device, but torch sees none." in capsys.readouterr().err
    assert bench.main(["--suite", "gpu", "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_and_a_baseline_of_another_schema(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["bench", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be used" in capsys.readouterr().err
    old = tmp_path / "old.jsonl"
    old.write_text(record_file.to_json(HERE).replace('"schema": 1', '"schema": 0') + "\n")
    assert cli.main(["bench", "--out", str(tmp_path / "out"), "--baseline", str(old)]) == 2
    assert "has schema 0" in capsys.readouterr().err


def test_a_commits_recorded_run_is_read(monkeypatch):
    shown = (Path(__file__).with_name("example.jsonl")).read_text()

    def run(command, **options):
        assert command == ["git", "show", "v1:benchmarks/results/bench_cpu.jsonl"]
        return subprocess.CompletedProcess(command, 0, shown, "")

    monkeypatch.setattr(baseline.subprocess, "run", run)
    assert baseline.load("v1", "cpu").complete


def names(suite: str) -> set[str]:
    return {case.name for case in declared.of_suite(suite)}


def test_the_quick_suite_is_what_it_says():
    assert names(QUICK) == {
        "pgd_step_ Linf 128x3x32x32", "logit_loss kl 128x10 float32",
        *(f"pgd-10 kl {model} {precision} b8" for model in ("resnet18", "mobilenetv2")
          for precision in ("fp32", "bf16")),
        "pgd-10 ce mobilenetv2 fp32 b8",
        "training step trades small_cnn fp32 b64", "training step rslad small_cnn fp32 b64",
        "parts of pgd-10 kl mobilenetv2 fp32 b32", "growth with steps mobilenetv2",
    }  # fmt: skip


def test_suites_hold_what_they_should():
    everything = declared.everything()
    assert len({case.name for case in everything}) == len(everything)
    assert {case.group for case in everything} == set(GROUPS)
    by_name = {case.name: case for case in everything}
    assert all(by_name[n].device == "cpu" for n in names(QUICK) | names(CPU))
    assert all(by_name[n].device == "cuda" for n in names(GPU))
    assert names(GPU) <= names(FULL)
    models = {case.model for case in everything if case.group == "attack"}
    assert models >= {"resnet18", "mobilenetv2", "preactresnet18", "wrn-28-10", "wrn-34-10",
                      "resnet50", "vit_small_patch16_224"}  # fmt: skip
    attacks = [case for case in everything if case.group == "attack"]
    assert {case.norm for case in attacks} == {"Linf", "L2", "L1"}
    assert {case.loss for case in attacks} == {"kl", "ce", "pair", "trades", "iad"}
    assert {case.precision for case in attacks} == {"fp32", "tf32", "bf16", "fp16"}
    assert {case.batch for case in attacks} >= {1, 8, 32, 128, 512}
    over = {case.settings["over"] for case in everything if case.group == "scaling"}
    assert over == {"steps", "batch", "image side", "classes"}


def test_every_target_of_the_cpu_is_measured_first():
    cases = declared.of_suite(CPU)
    bounded = [bool(case.bounds) for case in cases]
    assert bounded == sorted(bounded, reverse=True) and sum(bounded) >= 6
    bounds = {(c.group, c.model, c.precision): [b.bound for b in c.bounds]
              for c in cases if c.bounds}  # fmt: skip
    assert bounds["attack", "mobilenetv2", "fp32"] == [3.0, 1.3, 1.6]
    assert bounds["attack", "resnet18", "bf16"] == [5.0, 1.3, 1.25]
    steps = {key[1:]: found for key, found in bounds.items() if key[0] == "step"}
    assert steps == {key: [times] for key, times in step_summary.TIMES.items()}


def test_a_wheel_can_carry_the_benchmarks():
    """They import each other by place, not by name: a wheel has them as fastard._benchmarks."""
    named = []
    for path in (ROOT / "benchmarks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            if any(m.split(".")[0] == "benchmarks" for m in modules):
                named.append(f"{path.name}:{node.lineno}")
    assert named == []
