"""What networks answer: a single teacher's logits, and logits that a pass gives anyway."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fastard.api import clean_eval_logits


def answer(teacher: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The teacher's logits of x in eval mode, in fp32, detached."""
    return clean_eval_logits(teacher.eval(), x)


@contextlib.contextmanager
def heard(module: nn.Module, x: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """The logits [B, C] that the module answers to this very x in the block, with their graph."""
    logits: list[torch.Tensor] = []

    def hear(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        if inputs and inputs[0] is x and output.dim() == 2:
            logits.append(output)

    handle = module.register_forward_hook(hear)
    try:
        yield logits
    finally:
        handle.remove()
