"""`make gpu-check` without a GPU: its steps in turn, what it keeps, what it reads, what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_check, gpu_environment, gpu_record, gpu_steps, gpu_summary
from benchmarks.gpu_steps import Context, Outcome, Step

ROOT = gpu_check.ROOT


def reads_nothing(context, outcome):
    return {"said": outcome.output.splitlines()[-1]}, ["it failed"] if outcome.status else []


def fake(name, code, most=30.0, least=0.0, **more):
    return Step(name, lambda _: [sys.executable, "-c", code], reads_nothing, most, least, **more)


def record(out):
    return json.loads((out / "gpu_check.json").read_text())


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid, seconds=10.0):
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_no_device_is_one_sentence(tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(out)],
        cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "needs a CUDA device" in done.stderr
    assert not out.exists()


def test_an_old_torch_is_one_sentence(monkeypatch):
    monkeypatch.setattr(gpu_check.native, "torch_version", lambda: (2, 10))
    assert "needs torch 2.11 or newer, not" in gpu_check.missing()


@pytest.mark.parametrize("inside", ["file", "file/folder"])
def test_out_must_be_a_folder(monkeypatch, tmp_path, capsys, inside):
    monkeypatch.setattr(gpu_check, "missing", lambda: None)
    (tmp_path / "file").write_text("kept")
    assert gpu_check.main(["--out", str(tmp_path / inside)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1 and "is a file" in said.err
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("minutes", ["0", "-3", "nan", "1e9"])
def test_minutes_must_be_some(monkeypatch, tmp_path, capsys, minutes):
    monkeypatch.setattr(gpu_check, "missing", lambda: None)
    assert gpu_check.main(["--out", str(tmp_path / "out"), "--minutes", minutes]) == 2
    assert "--minutes must lie between" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_steps_go_on_after_one_that_fails_and_one_that_cannot_be_taken(tmp_path):
    steps = [
        fake("good", "print('fine')"),
        fake("bad", "print('broken'); raise SystemExit(3)"),
        Step("absent", lambda _: "the tool is not there", reads_nothing, 9, 0),
        fake("last", "import os; print(os.environ['A'])", variables={"A": "given"}),
    ]
    assert gpu_check.run(steps, tmp_path, 60) == 1
    found = record(tmp_path)
    assert found["complete"] is True and found["seconds"] > 0
    assert list(found["steps"]) == ["good", "bad", "absent", "last"]
    assert {name: step["outcome"] for name, step in found["steps"].items()} == {
        "good": "done", "bad": "failed", "absent": "unavailable", "last": "done"}  # fmt: skip
    assert found["steps"]["bad"]["failures"] == ["it failed"]
    assert "broken" in found["steps"]["bad"]["output"]
    assert found["steps"]["absent"]["reason"] == "the tool is not there"
    assert found["steps"]["last"]["said"] == "given"
    assert gpu_check.failures(found) == ["it failed", "absent: the tool is not there"]
    assert found["steps"]["good"]["command"] == "python -c print('fine')"
    assert "fine" in (tmp_path / "gpu_check.log").read_text()


def test_all_well_is_status_0(tmp_path):
    assert gpu_check.run([fake("good", "print(1)")], tmp_path, 60) == 0


def test_what_is_set_of_ours_does_not_reach_a_step(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTARD_BACKEND", "reference")
    code = "import os; print([k for k in os.environ if k.startswith('FASTARD_')])"
    gpu_check.run([fake("env", code)], tmp_path, 60)
    assert record(tmp_path)["steps"]["env"]["said"] == "[]"


def test_a_step_over_its_budget_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    monkeypatch.setattr(gpu_check, "SHORTEST", 0.0)
    stubborn = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(os.getpid(), child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    begun = time.monotonic()
    status = gpu_check.run(
        [fake("long", stubborn, most=3.0), fake("next", "print(1)")], tmp_path, 60
    )
    assert time.monotonic() - begun < 30
    assert status == 1
    steps = record(tmp_path)["steps"]
    assert steps["long"]["outcome"] == "over budget"
    assert steps["long"]["failures"] == ["long ran over its 3 s"]
    assert steps["next"]["outcome"] == "done"
    pids = list(map(int, steps["long"]["said"].split()))
    assert len(pids) == 2 and all(gone(pid) for pid in pids)


def test_an_interrupted_step_may_write_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "SHORTEST", 0.0)
    code = (
        "import time\ntry:\n    print('begun', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('what it has')"
    )
    assert gpu_check.run([fake("extra", code, most=4.0, extra=True)], tmp_path, 60) == 0
    step = record(tmp_path)["steps"]["extra"]
    assert step["outcome"] == "over budget" and step["said"] == "what it has"


def test_unspent_time_passes_on_and_later_steps_keep_their_least(tmp_path):
    steps = [
        fake("first", "print(1)", most=1000.0, least=20.0),
        fake("second", "print(1)", most=50.0, least=30.0),
        fake("third", "print(1)", most=1000.0, least=10.0),
    ]
    gpu_check.run(steps, tmp_path, 100)
    budgets = [step["budget"] for step in record(tmp_path)["steps"].values()]
    assert budgets[0] == pytest.approx(60, abs=1)
    assert budgets[1] == 50
    assert 85 < budgets[2] < 100


def test_without_time_a_step_is_left_out(tmp_path):
    steps = [fake("needed", "print(1)", most=1.0), fake("extra", "print(1)", most=1.0, extra=True)]
    assert gpu_check.run(steps, tmp_path, 60) == 1
    found = record(tmp_path)["steps"]
    assert {step["outcome"] for step in found.values()} == {"left out"}
    assert gpu_check.failures(record(tmp_path)) == ["needed was left out: no time was left"]


def test_the_record_survives_a_kill(tmp_path):
    out = tmp_path / "out"
    code = f"""
from pathlib import Path
from benchmarks import gpu_check
from tests.test_gpu_check import fake
out = Path({str(out)!r})
out.mkdir()
steps = [fake("quick", "print('done')"),
         fake("slow", "import os, time; print(os.getpid(), flush=True); time.sleep(60)", 50)]
gpu_check.run(steps, out, 60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    log, pid = out / "gpu_check.log", ""
    end = time.monotonic() + 60
    while not pid.isdigit() and time.monotonic() < end:
        time.sleep(0.1)
        pid = log.read_text().splitlines()[-1] if log.exists() and log.stat().st_size else ""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    os.kill(int(pid), signal.SIGKILL)
    found = record(out)
    assert found["complete"] is False
    assert found["steps"]["quick"]["said"] == "done" and "slow" not in found["steps"]
    assert sorted(p.name for p in out.iterdir()) == ["gpu_check.json", "gpu_check.log"]


def test_the_real_steps_fit_their_time():
    names = [step.name for step in gpu_steps.STEPS]
    extra = ["engine tests", "attack rivals", "training step", "autoattack", "other GPU tests",
             "bench", "Triton memcheck", "other tests"]  # fmt: skip
    assert names == ["environment", "build", "binary", "op tests", "memcheck", "racecheck",
                     "kernels", "attack", *extra]  # fmt: skip
    assert sum(step.least for step in gpu_steps.STEPS) <= 0.8 * 60 * 8.5
    assert all(step.least <= step.most for step in gpu_steps.STEPS)
    assert [step.name for step in gpu_steps.STEPS if step.extra] == extra


def test_commands_of_the_real_steps(tmp_path, monkeypatch):
    path = tmp_path / "gpu_check.json"
    context = Context(path, tmp_path, 100.0, "abc")
    build = gpu_steps.STEPS[1]
    assert "architecture" in build.command(context)
    gpu_record.put(path, {"gpu": {"arch": "90-real"}}, "environment")
    assert build.command(context)[1:] == ["setup.py", "build_ext", "--inplace"]
    assert build.variables(context) == {"FASTARD_CUDA": "on", "FASTARD_CUDA_ARCH": "90-real"}
    assert gpu_steps.environment(context)[-2:] == ["--commit", "abc"]
    assert "-m" in gpu_steps.pytest("gpu")(context)
    assert gpu_steps.suite(context)[1:] == [
        "-m", "benchmarks.bench", "--suite", "gpu", "--out", str(tmp_path / "bench"),
        "--minutes", "1.17", "--commit", "abc"]  # fmt: skip
    monkeypatch.setattr(gpu_environment, "find_cuda_tool", lambda name: None)
    assert "compute-sanitizer is not" in gpu_steps.sanitizer("memcheck", "native")(context)
    monkeypatch.setattr(gpu_environment, "find_cuda_tool", lambda name: f"/cuda/bin/{name}")
    command = gpu_steps.sanitizer("racecheck", "native")(context)
    assert command[:3] == ["/cuda/bin/compute-sanitizer", "--tool", "racecheck"]


def test_the_suites_lines_are_read(tmp_path):
    context, done = Context(tmp_path / "gpu_check.json", tmp_path, 100.0), Outcome(0, "")
    assert gpu_steps.read_suite(context, done) == ({}, ["bench: it wrote nothing"])
    (tmp_path / "bench").mkdir()
    example = Path(__file__).parent / "bench" / "example.jsonl"
    (tmp_path / "bench" / "bench.jsonl").write_text(example.read_text())
    figures, failures = gpu_steps.read_suite(context, done)
    assert figures["lines"]["measured"] > 20 and failures == []
    wrong = example.read_text().replace('"who": "foolbox"', '"who": "fastard"').replace(
        '"status": "measured"', '"status": "failed"', 4)  # fmt: skip
    (tmp_path / "bench" / "bench.jsonl").write_text(wrong)
    assert gpu_steps.read_suite(context, done)[1][0].startswith("bench: pgd-kl resnet18")


def test_a_cuda_tool_is_found_beside_nvcc_and_in_cuda_home(tmp_path, monkeypatch):
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    home, linked = tmp_path / "cuda", tmp_path / "linked"
    for folder in (home / "bin", home / "watcher", linked):
        folder.mkdir(parents=True)
    for path in (home / "bin" / "nvcc", home / "watcher" / "watcher"):
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    (linked / "nvcc").symlink_to(home / "bin" / "nvcc")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_environment.find_cuda_tool("watcher") is None
    monkeypatch.setenv("PATH", str(linked))
    assert gpu_environment.find_cuda_tool("watcher") == str(home / "watcher" / "watcher")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert gpu_environment.find_cuda_tool("watcher") == str(home / "watcher" / "watcher")


def test_an_absent_git_is_recorded(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = gpu_environment.commit("abc")
    assert found == {"id": "abc", "dirty": None, "reason": "git names no commit here"}


SUITE = """
import pytest

def test_good(): assert True
def test_lazy(): import no_such_package
def test_bad(): assert 1 == 2, "one is not two" + "!" * 5000
@pytest.mark.skip(reason="no device")
def test_skipped(): assert False
"""


def test_reading_pytests_report(tmp_path):
    (tmp_path / "test_some.py").write_text(SUITE)
    (tmp_path / "test_foreign.py").write_text("import no_such_package.inside\n")
    (tmp_path / "test_broken.py").write_text("import fastard.no_such_module\n")
    context = Context(tmp_path / "gpu_check.json", tmp_path, 60.0)
    command = [part for part in gpu_steps.pytest("not gpu")(context) if part != "--strict-markers"]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), "-c", os.devnull, str(tmp_path)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    found, failures = gpu_steps.read_tests(context, Outcome(done.returncode, done.stdout))
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1), done.stdout
    assert found["skip_reasons"] == {"no device": 1}
    assert list(found["missing"]) == ["no_such_package"]
    (lazy, foreign) = sorted(found["missing"]["no_such_package"], reverse=True)
    assert "test_foreign" in foreign and "test_lazy" in lazy
    bad = next(f for f in found["failures"] if f["name"].endswith("test_bad"))
    assert "one is not two" in bad["message"] and len(bad["message"]) <= 2000
    assert sorted(failures) == sorted(f"test {f['name']}" for f in found["failures"])


def test_a_report_that_is_absent_or_half_is_said(tmp_path):
    context = Context(tmp_path / "gpu_check.json", tmp_path, 60.0)
    assert gpu_steps.read_tests(context, Outcome(4, ""))[1] == ["tests: pytest left no report"]
    assert gpu_steps.read_tests(context, Outcome(None, ""))[1] == []
    (tmp_path / "tests.xml").write_text("<testsuites><testsuite>")
    assert "cannot be read" in gpu_steps.read_tests(context, Outcome(2, ""))[1][0]
    (tmp_path / "tests.xml").write_text("<testsuites/>")
    assert gpu_steps.read_tests(context, Outcome(5, ""))[1] == ["tests: none passed"]


RIGHT = "gpu_smoke: 9 of 9 right, 2 left out\n"


@pytest.mark.parametrize(
    ("status", "text", "figures", "failures"),
    [
        (0, RIGHT + "========= ERROR SUMMARY: 0 errors\n", {"errors": 0, "left_out": 2}, 0),
        (0, RIGHT + "========= ERROR SUMMARY: 1 error\n", {"errors": 1}, 1),
        (0, RIGHT + "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
         {"errors": 0, "hazards": 0, "warnings": 0}, 0),
        (0, RIGHT + "========= RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warnings)\n",
         {"errors": 2, "hazards": 3, "warnings": 1}, 1),
        (0, RIGHT + "========= Error: Device not supported\n", {"errors": None}, 1),
        (1, "WRONG native: L2: off\ngpu_smoke: 8 of 9 right, 0 left out\n"
            "========= ERROR SUMMARY: 0 errors\n", {"errors": 0, "right": 8, "run": 9}, 1),
        (9, "========= ERROR SUMMARY: 0 errors\n", {"errors": 0}, 1),
        (None, "", {"errors": None}, 0),
    ],
)  # fmt: skip
def test_reading_the_sanitizer(tmp_path, status, text, figures, failures):
    context = Context(tmp_path / "gpu_check.json", tmp_path, 60.0)
    found, said = gpu_steps.read_sanitizer(context, Outcome(status, text))
    assert figures.items() <= found.items()
    assert len(said) == failures, said


def test_steps_that_write_their_own_part(tmp_path):
    path = tmp_path / "gpu_check.json"
    read = gpu_steps.by_status("kernels")
    context = Context(path, tmp_path, 60.0)
    assert read(context, Outcome(1, ""))[1] == ["kernels: ended with status 1"]
    gpu_record.put(path, {"failures": ["off by 1"], "error": float("nan")}, "kernels", "cases", "a")
    assert read(context, Outcome(1, ""))[1] == ["off by 1"]
    assert gpu_record.load(path)["kernels"]["cases"]["a"]["error"] == "nan"
    gpu_record.put(path, {"failures": []}, "kernels", "cases", "a")
    gpu_record.put(path, ["b", "c"], "kernels", "left_out")
    assert read(context, Outcome(0, "")) == ({"left_out": 2}, [])


def test_the_record_names_no_folder_of_this_machine(tmp_path):
    path = tmp_path / "gpu_check.json"
    said = f"{sys.executable} failed in {ROOT}/tests, {tmp_path}/a, {Path.home()}/b"
    gpu_record.put(path, [said], "a", "b")
    (text,) = gpu_record.load(path)["a"]["b"]
    assert text.startswith("python failed in ./tests")
    assert str(tmp_path) not in text and str(Path.home()) + "/" not in text
    context = Context(path, tmp_path / "scratch", 60.0)
    command = gpu_steps.module("gpu_attack")(context)
    shown = gpu_check.shown(command, context)
    assert shown == f"{sys.executable} -m benchmarks.gpu_attack --record gpu_check.json"


def test_the_summary_names_every_target_and_failure():
    rows = [
        {"case": "a", "target": "copy", "figure": "share of the copy bandwidth", "value": 0.95,
         "at_least": 0.9, "reached": True},
        {"case": "a", "target": "compile", "figure": "times faster than compile", "value": None,
         "at_least": 1.2, "reached": False},
        {"case": "a", "target": "launch", "figure": "seconds", "value": 2e-6, "at_most": 1.5e-6,
         "factor": 1.2, "reached": False},
    ]  # fmt: skip
    case = {
        "seconds": {"native": {"median": 2e-6}}, "gigabytes_per_second": {"native": 3000.0},
        "share_of_copy": {"native": 0.95}, "times_faster_than": {}, "targets": rows,
        "failures": [],
    }  # fmt: skip
    broken = {"failures": ["b: native failed"]}
    steps = {"kernels": {"outcome": "failed", "seconds": 3.2, "failures": ["b: native failed"]}}
    said = gpu_summary.lines({"kernels": {"cases": {"a": case, "b": broken}}, "steps": steps})
    text = "\n".join(said)
    assert "a: 0.95 share of the copy bandwidth, target 0.9: reached" in said
    assert "a: not measured times faster than compile, target 1.2: NOT reached" in said
    assert "a: 2.00 us, target at most 1.50 us: NOT reached" in said
    assert "kernels: failed, 3 s" in said
    assert text.endswith("Failures: 1\nb: native failed")
    assert "2.00" in text and "3000" in text
    assert gpu_summary.lines({})[-1] == "Failures: 0"
