"""The table of docs/methods.md: it names every method, and its passes are those that run."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

from fastard import methods
from fastard.methods.registry import METHODS

from .loops import network, teachers_for

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()


def rows() -> dict[str, list[str]]:
    """Method -> the cells of its row."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| `")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {cells[0].strip("`"): cells for cells in table}


def test_every_method_has_a_row_with_its_presets():
    assert set(rows()) == set(methods.names())
    for name, cells in rows().items():
        presets = [p for p in methods.presets() if methods.preset(p).method == name]
        assert re.findall(r"`([^`]+)`", cells[1]) == presets, name


class Counted:
    """Counts a network's forwards and keeps their inputs."""

    def __init__(self, network: torch.nn.Module):
        self.inputs: list[torch.Tensor] = []
        network.register_forward_pre_hook(lambda _, inputs: self.inputs.append(inputs[0]))


def stages(cell: str) -> list[str]:
    """What a cell says before and after a warm-up."""
    return re.split(r", then ", cell)


@pytest.mark.parametrize("name", methods.names())
def test_passes_are_those_of_the_table(setting, name):
    cells = rows()[name]
    student = METHODS[name].make_student(
        lambda outputs: network(0, outputs), 5, 1, methods.preset(name).options_for()
    )
    teachers = [copy.deepcopy(t) for t in teachers_for(name, setting.teacher)]
    method = methods.build(name, student, teachers)
    of_student, of_teachers = Counted(student), [Counted(t) for t in teachers]
    x, y = setting.batch
    orders, passes = stages(cells[5]), stages(cells[7])
    assert len(orders) == len(passes)
    for epoch, order, said in zip([1, 1000], orders, passes, strict=False):
        method.on_epoch(epoch, 1000)
        student.train()
        of_student.inputs.clear()
        x_adv = method.attack(x, y)
        inside = len(of_student.inputs)
        of_student.inputs.clear()
        method.outer(x, x_adv, y)[0].backward()
        method.after_backward()
        known = {"x": x, "x'": x_adv, "mixed x": x_adv}
        for seen, token in zip(of_student.inputs, order.split(", "), strict=True):
            if token in known:
                assert torch.equal(seen, known[token]), (name, token)
            else:
                assert not any(torch.equal(seen, images) for images in known.values())
        asked = [len(counted.inputs) for counted in of_teachers] or [0]
        assert len(set(asked)) == 1
        found = f"{inside}+{len(of_student.inputs)} / {asked[0]}"
        assert said.removesuffix(" a replay") == found
        for counted in of_teachers:
            counted.inputs.clear()
