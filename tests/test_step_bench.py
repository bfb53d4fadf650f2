"""Whole training steps: the published ones as they are, agreement, parts, verdicts, the table."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from benchmarks import published_steps, step, step_agreement, step_summary, training_table
from benchmarks.step_parts import Clock, rest, watched
from fastard import methods
from fastard.engine import compiled
from tests.api.models import batch, small_net


def dry(net: nn.Module) -> nn.Module:
    """Without dropout: two forwards of one input are equal."""
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


@pytest.fixture
def networks():
    return dry(small_net()), dry(small_net(seed=1)).eval()


class Passes:
    """Counts a network's forwards, and those in train mode."""

    def __init__(self, net: nn.Module) -> None:
        self.all = self.train = 0
        net.register_forward_pre_hook(self.count)

    def count(self, module: nn.Module, inputs: tuple) -> None:
        self.all += 1
        self.train += module.training


@pytest.mark.parametrize(("name", "teachers"), [("rslad", 1), ("adaad", 12)])
def test_the_published_steps_make_the_passes_that_their_scripts_make(networks, name, teachers):
    student, teacher = networks
    ours, theirs, (x, y, _) = Passes(student), Passes(teacher), batch(4)
    before = [p.detach().clone() for p in student.parameters()]
    loss = step.PUBLISHED[name](student, teacher, step.sgd(student), x, y)
    assert (ours.all, ours.train, theirs.all, theirs.train) == (12, 2, teachers, 0)
    assert loss.dim() == 0 and not loss.requires_grad
    assert any(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    assert all(p.grad is None for p in teacher.parameters())


def test_rslad_agrees_with_the_published_step(networks):
    x, y, _ = batch(8)
    found = step_agreement.agreement("rslad", *networks, published_steps.rslad, x, y)
    assert found["eager"]["update"] < 1e-5 and found["eager"]["statistics"] == 0
    assert found["engine"]["loss"] < 1e-4


def test_a_step_that_disagrees_is_not_timed(networks):
    def other(student, teacher, optimizer, x, y):
        return published_steps.rslad(student, teacher, optimizer, x.flip(0), y)

    with pytest.raises(RuntimeError, match="rslad: the update of a step with eager attacks is"):
        step_agreement.agreement("rslad", *networks, other, *batch(8)[:2])


def test_the_published_loader_crops_and_flips_every_image():
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 32, 32) * 60 + 10
    batches = published_steps.batches(images, torch.arange(4), 2)
    for _ in range(3):
        x, y = next(batches)
        assert x.shape == (2, 3, 32, 32) and x.dtype == torch.float32
        for picture, label in zip(x, y, strict=True):
            shown = (int(label) * 60 + 10) / 255
            assert picture[:, 8:24, 8:24].allclose(torch.tensor(shown))


def test_of_parts_inside_parts_the_outermost_counts():
    clock = Clock()
    with clock.part("a"), clock.part("b"):
        with clock.part("b"):
            assert clock.seconds == {}
    assert set(clock.seconds) == {"a"}
    with clock.part("b"):
        assert set(clock.seconds) == {"a"}
    assert set(clock.seconds) == {"a", "b"}
    assert rest({"step": 5.0, "attack": 3.0, "backward": 1.0}) == 1.0


def test_watching_a_step_takes_nothing_from_its_attack(networks, monkeypatch):
    student, teacher = networks
    method, (x, y, _) = methods.build("rslad", student, [teacher]), batch(4)
    optimizer = step.sgd(student)
    step.step(method, optimizer, x, y, low=False)
    plans, timer = compiled._PLANS[student], method.attack_timer
    before = dict(plans)
    with watched(method, student) as clock:
        step.step(method, optimizer, x, y, low=False)
    assert set(clock.seconds) == {"attack", "student", "backward"}
    assert dict(plans) == before and all(made.plan for made in plans.values())
    assert method.attack_timer is timer and "__call__" not in type(student).__dict__
    assert torch.Tensor.backward.__qualname__ == "Tensor.backward"


@pytest.fixture
def small(monkeypatch):
    nets = {"resnet18": 0, "mobilenetv2": 1, step.TEACHER: 2}
    monkeypatch.setattr(step, "network", lambda name: dry(small_net(seed=nets[name])))


def test_measures_every_step(small):
    found = step.measure(step.Case("rslad", "resnet18", rounds=1), batch=4, images=16)
    ours = {f"fastard {p} {f}" for p in ("fp32", "bf16") for f in ("nchw", "channels_last")}
    assert set(found["seconds"]) == ours | {"published"} and set(found["parts"]) == ours
    assert all(v["min"] > 0 for v in found["seconds"].values())
    assert all(0 < rest(parts) < parts["step"] for parts in found["parts"].values())
    assert found["data_seconds"] > 0 and found["agreement"]["eager"]["update"] < 1e-5
    assert "| rslad, resnet18 student, wrn-16-4 teacher, batch 4 |" in step_summary.rows(
        {"networks": [found]})[-1]  # fmt: skip


def test_a_method_that_is_not_there_is_recorded_so(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(step.METHODS, "adaad", raising=False)
    out = tmp_path / "step.json"
    assert step.main(["--only", "adaad-resnet18", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["networks"]
    assert row["not_measured"] == "fastard has no method 'adaad'"
    assert "not measured, fastard has no method" in capsys.readouterr().out
    assert "not measured: fastard has" in step_summary.rows({"networks": [row]})[-1]


def found(**seconds: float) -> dict:
    names = ("published", "fastard fp32 nchw", "fastard fp32 channels_last", "fastard bf16 nchw",
             "fastard bf16 channels_last")  # fmt: skip
    times = dict(zip(names, (6.0, 4.0, 5.0, 3.0, 2.0), strict=True))
    parts = {n: {"step": 10.0, "attack": 8.0, "student": 1.0, "backward": 0.8} for n in names[1:]}
    return {"method": "rslad", "model": "rslad-resnet18", "student": "resnet18", "teacher": "t",
            "batch": 32, "data_seconds": 0.1, "parts": parts,
            "seconds": {n: {"min": v, "median": v, "rounds": 1} for n, v in times.items()},
            **seconds}  # fmt: skip


def test_verdicts_take_the_faster_layout():
    lines = {row["what"]: row for row in step_summary.summary(found())}
    fp32, bf16 = (lines[f"{p} against the published step"] for p in ("fp32", "bf16"))
    assert (fp32["value"], fp32["target"], fp32["reached"]) == (1.5, 1.2, True)
    assert (bf16["value"], bf16["target"], bf16["reached"]) == (3.0, 4.0, False)
    assert lines["fp32 overhead, share of the step"]["reached"]
    data = {p: lines[f"{p} data, share of the step"] for p in ("fp32", "bf16")}
    assert (data["fp32"]["value"], data["bf16"]["value"]) == (0.025, 0.05)
    assert not data["fp32"]["reached"]
    row = step_summary.rows({"networks": [found() | {"lines": list(lines.values())}]})[-1]
    assert "| 6.00 s | 4.00 s: 1.50× (target 1.2); overhead 2.0 % (target at most 3 %)" in row
    assert "2.00 s: 3.00× (target 4, not reached)" in row


def test_the_readme_says_nothing_of_runs_that_are_not_there(tmp_path):
    assert training_table.paragraphs(tmp_path, "results") == ""
    run = {"environment": {"cpu": "c", "threads": 2, "isa": "i", "torch": "9"},
           "networks": [found() | {"lines": step_summary.summary(found())}]}  # fmt: skip
    (tmp_path / "cpu_step.json").write_text(json.dumps(run))
    text = training_table.paragraphs(tmp_path, "results")
    assert "| rslad, resnet18 student" in text and "[`results/cpu_step.json`]" in text


def test_a_copy_of_the_student_is_trained(small):
    net = step.network("resnet18")
    before = copy.deepcopy(net.state_dict())
    images = step.Images(torch.zeros(8, 3, 32, 32, dtype=torch.uint8),
                         torch.zeros(8, dtype=torch.int64), "crop-flip")  # fmt: skip
    case = step.Case("rslad", "resnet18")
    method, run = step.ours(case, net, small_net(seed=2).eval(), images, False, "nchw", 4)
    assert torch.isfinite(run())
    assert method.student is not net
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
