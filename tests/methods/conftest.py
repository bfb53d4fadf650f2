"""The setting of the method tests."""

from __future__ import annotations

import copy

import pytest
import torch

from .loops import Setting, network


@pytest.fixture
def setting() -> Setting:
    student, teacher = network(0), network(1)
    generator = torch.Generator().manual_seed(2)
    # fp32 values, because starts are drawn in fp32 and a sum with them must not round twice.
    batches = [
        (
            torch.rand(6, 1, 8, 8, generator=generator).double(),
            torch.randint(5, (6,), generator=generator),
        )
        for _ in range(3)
    ]
    return Setting(student, copy.deepcopy(student), teacher.eval(), batches)
