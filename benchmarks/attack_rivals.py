"""The compiled rivals of an attack: the published loop around `torch.compile` of the student.

Every mode and layout is compiled and tried on few steps; the fastest of each precision goes on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import published, timing

Run = Callable[..., Any]
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
TRIES = 3


@dataclass
class Found:
    """The loops worth timing by name, and seconds a step in the trials, None where one failed."""

    loops: dict[str, Run]
    trials: dict[str, float | None]


def autocast(x: Tensor, precision: str) -> torch.autocast:
    return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def loop(student: Any, x: Tensor, logits: Tensor, precision: str) -> Run:
    """The published loop; in bf16 under autocast."""

    def run(steps: int) -> Tensor:
        with autocast(x, precision):
            return published.rslad(student, logits, x, steps=steps)

    return run


def compiled(net: nn.Module, x: Tensor, logits: Tensor, mode: str, form: str, prec: str) -> Run:
    """The loop around a compiled copy, its parameters frozen."""
    memory = LAYOUTS[form]
    student = copy.deepcopy(net).requires_grad_(False).to(memory_format=memory)
    run = torch.compile(student, mode=mode, dynamic=False)
    return loop(run, x.contiguous(memory_format=memory), logits, prec)


def fastest(
    net: nn.Module, x: Tensor, logits: Tensor, modes: Iterable[str],
    precisions: Iterable[str] = ("fp32", "bf16"), forms: Iterable[str] = tuple(LAYOUTS),
) -> Found:  # fmt: skip
    """Compiles and tries every variant, in turns; keeps the fastest of each precision."""
    found, modes, forms = Found({}, {}), tuple(modes), tuple(forms)
    # All variants are one code object's entries, and beyond the limit they would run eagerly.
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
    for precision in precisions:
        tried: dict[str, Run] = {}
        for mode in modes:
            for form in forms:
                name = f"compile {precision} {mode} {form}"
                run = compiled(net, x, logits, mode, form, precision)
                try:
                    run(1)
                except Exception as error:  # whatever the compiler raises on this machine
                    print(f"torch.{name} failed: {(str(error).splitlines() or ['?'])[0]}")
                    found.trials[name] = None
                    continue
                tried[name] = run
        if not tried:
            continue
        once = {name: lambda run=run: run(1) for name, run in tried.items()}
        took, _ = timing.turns(once, timing.clock_of(x.device.type), rounds=TRIES, warm_up=0)
        found.trials |= {name: min(seconds) for name, seconds in took.items()}
        name = min(took, key=lambda key: min(took[key]))
        found.loops[name] = tried[name]
    return found
