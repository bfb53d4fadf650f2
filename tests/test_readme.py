"""Every number in the README comes from a recorded run."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks import readme_table
from tests.api.models import batch, small_net

README = (readme_table.ROOT / "README.md").read_text()


def test_table_is_the_recorded_runs():
    assert readme_table.with_table(README) == README, "run: python -m benchmarks.readme_table"


def test_every_source_exists():
    named = re.findall(r"benchmarks/results/[\w.]+\.json", README)
    assert named
    for name in named:
        assert (readme_table.ROOT / name).is_file(), name


def test_no_measured_number_outside_the_table():
    head, _, rest = README.partition(readme_table.BEGIN)
    tail = rest.partition(readme_table.END)[2]
    measured = r"\d[\d.]*\s*(×|x faster|ms\b|µs\b|%|GB/s|images/s)"
    assert re.findall(measured, head + tail) == []


def test_the_check_finds_a_changed_number():
    changed = re.sub(r"\d ms", "9 ms", README, count=1)
    if changed == README:
        pytest.fail("the README's table has no time in it")
    assert readme_table.with_table(changed) != changed


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
    assert torch.equal(*results)


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
    exec(blocks("python")[2], names)
    assert student[0].weight.grad is not None and names["logs"]
