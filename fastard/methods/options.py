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

    def _positive(self, name: str) -> None:
        self._number(name, low=0)
        if not getattr(self, name) > 0:
            raise ValueError(f"option {name} must be above 0, but is {getattr(self, name)!r}.")

    def _count(self, name: str, least: int = 1) -> None:
        value = getattr(self, name)
        counts = hasattr(value, "__index__") and not isinstance(value, bool)
        if not counts or operator.index(value) < least:
            wanted = f"an integer above {least - 1}" if least else "an integer of at least 0"
            raise ValueError(f"option {name} must be {wanted}, but is {value!r}.")

    def _numbers(self, name: str, low: float = -math.inf, high: float = math.inf) -> None:
        """A tuple of numbers; text such as "0.5,0.5" becomes one."""
        value = getattr(self, name)
        try:
            parts = value.split(",") if isinstance(value, str) else list(value)
            numbers_found = tuple(float(part) for part in parts)
        except (TypeError, ValueError):
            numbers_found = (math.nan,)
        if not all(math.isfinite(n) and low <= n <= high for n in numbers_found):
            wanted = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
            raise ValueError(f"option {name} must be numbers {wanted}, but is {value!r}.")
        object.__setattr__(self, name, numbers_found)

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
class BallOptions(MethodOptions):
    """The threat model: a ball around each image, inside a box."""

    eps: float = 8 / 255
    norm: str = "Linf"
    clip_min: float = 0.0
    clip_max: float = 1.0

    def __post_init__(self) -> None:
        self._radius("eps")
        parse_norm(self.norm)
        self._number("clip_min")
        self._number("clip_max")
        if not self.clip_min < self.clip_max:
            raise ValueError(
                f"option clip_min must be below clip_max, but they are {self.clip_min}, "
                f"{self.clip_max}."
            )

    def _radius(self, name: str) -> None:
        # The attacks take one radius a sample as well.
        if isinstance(getattr(self, name), torch.Tensor):
            checks.radius(getattr(self, name), None, f"option {name}")
        else:
            self._number(name, low=0)


@dataclass(frozen=True, kw_only=True)
class NoisyOptions(BallOptions):
    """A threat model attacked from a random start."""

    precision: str | None = None
    noise_device: str | None = None
    generator: torch.Generator | None = None
    engine: bool = True
    """False attacks in eager autograd."""
    capture: str = "auto"
    """On CUDA the attack is one recorded graph from its second call on ("auto"), or is not
    ("never")."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision is not None:
            self._one_of("precision", PRECISIONS)
        self._flag("engine")
        self._one_of("capture", ("auto", "never"))
        _require_noise_device(self.noise_device)
        require_generator(self.generator)


@dataclass(frozen=True, kw_only=True)
class AttackOptions(NoisyOptions):
    """Settings of the inner attack, as `fastard.pgd_kl` and `fastard.pgd_ce` take them."""

    alpha: float = 2 / 255
    steps: int = 10
    random_start: bool | str = True
    clip_start: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._radius("alpha")
        self._count("steps")
        start = self.random_start
        if not (isinstance(start, bool) or start in ("gaussian", "uniform")):
            raise ValueError(
                "option random_start must be True, False, 'gaussian' or 'uniform', but is "
                f"{start!r}."
            )
        self._flag("clip_start", may_be_none=True)


@dataclass(frozen=True, kw_only=True)
class BatchNormOptions(NoisyOptions):
    """How an attack treats the student's BatchNorm."""

    attack_mode: str = "eval"
    """The student's mode inside the attack; some published codes attack in "train" mode."""
    bn_stats: str = "update"
    """Whether a train-mode attack updates BatchNorm statistics ("update") or not ("frozen")."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("attack_mode", ("eval", "train"))
        self._one_of("bn_stats", ("update", "frozen"))


def plain_names(options: type[MethodOptions]) -> list[str]:
    """The options that text can express, as a command line or a file gives them."""
    return [field.name for field in fields(options) if field.name != "generator"]


def require_generator(generator: Any) -> None:
    if not isinstance(generator, (torch.Generator, type(None))):
        raise ValueError(
            f"option generator must be a torch.Generator or None, but is {generator!r}."
        )


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
