"""The options of methods, and their refusals: one sentence each, when a method is built."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch

from fastard import checks
from fastard.kinds import parse_norm, unknown

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """The options of a method; every method derives its own frozen dataclass from this one."""

    def _number(self, name: str, low: float = -math.inf, high: float = math.inf) -> None:
        value = getattr(self, name)
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if fits and math.isfinite(value) and low <= value <= high:
            return
        wanted = "a finite number"
        if high < math.inf:
            wanted = f"a number from {low:g} to {high:g}"
        elif low > -math.inf:
            wanted += f" of at least {low:g}"
        raise ValueError(f"option {name} must be {wanted}, but is {value!r}.")

    def _flag(self, name: str, *, may_be_none: bool = False) -> None:
        value = getattr(self, name)
        if not (isinstance(value, bool) or (may_be_none and value is None)):
            wanted = "True, False or None" if may_be_none else "True or False"
            raise ValueError(f"option {name} must be {wanted}, but is {value!r}.")

    def _one_of(self, name: str, known: Iterable[str]) -> None:
        value = getattr(self, name)
        if value not in (known := tuple(known)):
            raise unknown(f"option {name}", value, known)


@dataclass(frozen=True, kw_only=True)
class AttackOptions(MethodOptions):
    """Settings of the inner attack, as `fastard.pgd_kl` and `fastard.pgd_ce` take them."""

    eps: float = 8 / 255
    alpha: float = 2 / 255
    steps: int = 10
    norm: str = "Linf"
    random_start: bool | str = True
    clip_start: bool | None = None
    clip_min: float = 0.0
    clip_max: float = 1.0
    precision: str | None = None
    noise_device: str | None = None
    generator: torch.Generator | None = None
    engine: bool = True
    """False attacks in eager autograd."""

    def __post_init__(self) -> None:
        for name in ("eps", "alpha"):
            # The attacks take one radius a sample as well.
            if isinstance(getattr(self, name), torch.Tensor):
                checks.radius(getattr(self, name), None, f"option {name}")
            else:
                self._number(name, low=0)
        counts = hasattr(self.steps, "__index__") and not isinstance(self.steps, bool)
        if not counts or operator.index(self.steps) < 1:
            raise ValueError(f"option steps must be an integer above 0, but is {self.steps!r}.")
        parse_norm(self.norm)
        start = self.random_start
        if not (isinstance(start, bool) or start in ("gaussian", "uniform")):
            raise ValueError(
                "option random_start must be True, False, 'gaussian' or 'uniform', but is "
                f"{start!r}."
            )
        self._flag("clip_start", may_be_none=True)
        self._number("clip_min")
        self._number("clip_max")
        if not self.clip_min < self.clip_max:
            raise ValueError(
                f"option clip_min must be below clip_max, but they are {self.clip_min}, "
                f"{self.clip_max}."
            )
        if self.precision is not None:
            self._one_of("precision", PRECISIONS)
        self._flag("engine")
        _require_noise_device(self.noise_device)
        if not isinstance(self.generator, (torch.Generator, type(None))):
            raise ValueError(
                f"option generator must be a torch.Generator or None, but is {self.generator!r}."
            )


def plain_names(options: type[MethodOptions]) -> list[str]:
    """The options that text can express, as a command line or a file gives them."""
    return [field.name for field in fields(options) if field.name != "generator"]


def _require_noise_device(device: Any) -> None:
    if device is None:
        return
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        kind = ""
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise ValueError(
            "option noise_device must be None, cpu or a cuda device that torch sees, but is "
            f"{str(device)!r}."
        )
