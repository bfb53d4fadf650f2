"""The main job on real images: RSLAD on CIFAR-10 from the command line, then its evaluation."""

from __future__ import annotations

import json

import pytest

from fastard import cli


def test_rslad_on_cifar10_with_a_resnet18_student(cifar_root, data_root, tmp_path, capsys):
    out = tmp_path / "run"
    teacher = data_root / "teachers" / "cifar10_resnet4b_robust_2over255.pth"
    assert cli.main([
        "train", "--method", "rslad", "--data", "cifar10", "--data-root", str(cifar_root),
        "--student", "resnet18", "--teacher", str(teacher), "--teacher-model", "resnet4b",
        "--epochs", "1", "--batch-size", "32", "--train-n", "64", "--val", "16", "--steps", "2",
        "--out", str(out)]) == 0  # fmt: skip
    for name in ("last.safetensors", "best.safetensors", "config.yaml", "metrics.jsonl"):
        assert (out / name).stat().st_size > 0
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert row["loss"] > 0 and 0 <= row["val_robust"] <= 1
    report = tmp_path / "report.json"
    assert cli.main([
        "evaluate", "--checkpoint", str(out / "best.safetensors"), "--data", "cifar10",
        "--data-root", str(cifar_root), "--n", "8", "--out", str(report)]) == 0  # fmt: skip
    found = json.loads(report.read_text())
    assert found["n"] == 8 and len(found["verdicts"]["clean"]) == 8
    assert "PGD-20" in capsys.readouterr().out


def test_a_public_robust_teacher_is_as_robust_as_it_should_be(cifar_root, data_root, tmp_path):
    report = tmp_path / "report.json"
    teacher = data_root / "teachers" / "cifar10_resnet4b_robust_2over255.pth"
    assert cli.main([
        "evaluate", "--checkpoint", str(teacher), "--model", "resnet4b", "--data", "cifar10",
        "--data-root", str(cifar_root), "--n", "500", "--eps", str(2 / 255), "--out", str(report),
    ]) == 0  # fmt: skip
    found = json.loads(report.read_text())["accuracy"]
    assert found["clean"] == pytest.approx(0.772, abs=0.02)
    assert found["pgd_sat"] == pytest.approx(0.612, abs=0.02)
    assert found["worst"] <= found["pgd_sat"] <= found["fgsm"] <= found["clean"]
