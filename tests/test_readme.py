"""Every number in the README comes from a recorded run."""

from __future__ import annotations

import json
import re

import pytest
import torch

from benchmarks import gpu_table, readme_table
from fastard.autoattack import driver
from fastard.autoattack.versions import configure
from tests.api.models import batch, small_net
from tests.autoattack.official_case import tiny_case

README = (readme_table.ROOT / "README.md").read_text()


def test_table_is_the_recorded_runs():
    assert readme_table.with_table(README) == README, "run: make readme-table"


def test_every_source_exists():
    named = re.findall(r"benchmarks/results/[\w.]+\.jsonl?", README)
    assert named
    for name in named:
        assert (readme_table.ROOT / name).is_file(), name


def test_no_measured_number_outside_the_table():
    measured = r"\d[\d.]*\s*(×|x faster|ms\b|µs\b|%|GB/s|images/s)"
    assert re.findall(measured, readme_table.without_tables(README)) == []


def test_the_check_finds_a_changed_number():
    changed = re.sub(r"\d ms", "9 ms", README, count=1)
    if changed == README:
        pytest.fail("the README's table has no time in it")
    assert readme_table.with_table(changed) != changed


def gpu_record(reached: bool) -> dict:
    target = {"case": "pgd_step_ L2", "target": "copy", "figure": "share of the copy bandwidth",
              "value": 0.7, "at_least": 0.8, "reached": reached}  # fmt: skip
    case = {"seconds": {"native": {"median": 2e-5}}, "gigabytes_per_second": {"native": 2345.6},
            "share_of_copy": {"native": 0.7}, "times_faster_than": {"eager": 5.0},
            "targets": [target]}  # fmt: skip
    gpu = {"name": "Some GPU", "nvidia_smi": {"driver_version": "580.1"}}
    return {
        "environment": {"gpu": gpu, "versions": {"torch": "2.11"}, "commit": {"id": "abc"}},
        "kernels": {"cases": {"pgd_step_ L2": case}},
        "steps": {"gpu tests": {"outcome": "failed", "failures": ["test a"]}},
    }


def test_gpu_numbers_come_from_a_recorded_run_alone(tmp_path):
    assert gpu_table.paragraph(tmp_path, "results") == gpu_table.NONE
    assert not re.search(r"\d", gpu_table.NONE)
    (tmp_path / "gpu_some.json").write_text(json.dumps(gpu_record(reached=False)))
    text = gpu_table.paragraph(tmp_path, "results")
    assert "| pgd_step_ L2 | 20.00 | 2346 | 0.70 |" in text
    assert "target 0.8: NOT reached" in text and "Failures: 1. test a" in text
    for part in ("results/gpu_some.json", "Some GPU", "580.1", "torch 2.11", "commit abc"):
        assert part in text


def test_a_gpu_is_named_with_a_recorded_run_alone():
    """Whatever stands between the marks is made; outside of them no device may be boasted of."""
    devices = r"\b(NVIDIA|[AHBVL]\d{2,3}S?|RTX)\b"
    assert re.findall(devices, readme_table.without_tables(README)) == []
    assert readme_table.GPU_BEGIN in README


def test_every_recorded_run_stands_in_the_index():
    results = readme_table.ROOT / readme_table.RESULTS
    index = (results / "README.md").read_text()
    for path in results.glob("*.json*"):
        assert f"`{path.name}`" in index or path.name.startswith("gpu_"), path.name
    named = re.findall(r"^\| `(\w+\.jsonl?)`", index, flags=re.M)
    assert named and all((results / name).is_file() for name in named)


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_names_the_two_commands(command):
    assert command in README


def test_first_screen_is_the_results():
    assert README.index(readme_table.BEGIN) < README.index("import torch, fastard") < 6000


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_six_lines_run():
    student, teacher = small_net(), small_net(seed=1).eval()
    x, _, _ = batch(4)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    before = student[0].weight.detach().clone()
    code = blocks("python")[0]
    exec(
        code,
        {"student": student, "x": x, "teacher_logits": teacher(x).detach(), "optimizer": optimizer},
    )
    assert len(code.strip().splitlines()) <= 6
    assert not torch.equal(student[0].weight, before)


def test_before_and_after_agree():
    before, after = blocks("python")[1].split("# after\n")
    model, (x, _, teacher_logits) = small_net().eval(), batch(4)
    names = {
        "torch": torch, "x": x, "model": model, "teacher_logits": teacher_logits,
        "fastard": __import__("fastard"), "kl": torch.nn.KLDivLoss(reduction="none"),
        "log_softmax": lambda z: z.log_softmax(1), "softmax": lambda z: z.softmax(1),
    }  # fmt: skip
    results = []
    for code in (before.replace(".cuda()", ""), after):
        torch.manual_seed(3)
        exec(code, names)
        results.append(names["x_adv"].detach())
    # Up to pixels whose gradient is rounding.
    assert (results[0] != results[1]).float().mean() < 1e-3


def test_the_engine_explains_itself(capsys):
    x, _, teacher_logits = batch(4)
    names = {"fastard": __import__("fastard"), "student": small_net(), "teacher": small_net(seed=1),
             "x": x, "teacher_logits": teacher_logits}  # fmt: skip
    exec(blocks("python")[2], names)
    assert "compiled: 2 convolutions" in capsys.readouterr().out
    assert names["logits"].shape == (4, 10)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_autoattack_runs_with_one_import_changed(monkeypatch, capsys):
    """As printed, but for the queries of Square."""
    monkeypatch.setattr(driver, "configure", configure_short)
    case = tiny_case()
    exec(blocks("python")[3], {"model": case.model, "x": case.x, "y": case.y})
    said = capsys.readouterr().out
    assert "robust accuracy after SQUARE" in said
    assert "AutoAttack reduced (APGD-T has 4 targets, not 9; FAB-T has 4 targets, not 9)" in said


def configure_short(version, norm, apgd, apgd_targeted, fab, square):
    configure(version, norm, apgd, apgd_targeted, fab, square)
    square.n_queries = 20


def test_the_method_in_a_users_loop_runs():
    student, teacher = small_net(), small_net(seed=1)
    x, y, _ = batch(4)
    names = {
        "fastard": __import__("fastard"),
        "student": student,
        "teacher": teacher,
        "x": x,
        "y": y,
    }
    exec(blocks("python")[4], names)
    assert student[0].weight.grad is not None and names["logs"]


def test_one_import_is_enough():
    model, (x, y, _) = small_net(), batch(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = {"model": model, "x": x, "y": y, "optimizer": optimizer}
    exec(blocks("python")[6], names)
    names["loss"].backward()
    assert model[0].weight.grad is not None
    modules = re.findall(r"`fastard\.compat\.(\w+)`", README)
    assert modules == ["rslad", "trades", "mart", "adaad", "robust_overfitting", "torchattacks"]


def test_the_trainer_in_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[5]
    assert code.count("TrainConfig(method=") == 2
    exec(code.replace("(method=", '(epochs=1, student="small_cnn-4", steps=1, method='), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "1"]
    assert (tmp_path / "runs" / "trades" / "summary.html").exists()
