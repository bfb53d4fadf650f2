"""A robust and a standard teacher, both asked for x': what AKD2 and IAD-II share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastard.methods.label_attack import LabelAttack


class TwoTeachers(LabelAttack):
    """A method that attacks the student alone and follows two teachers on x'."""

    @dataclass(frozen=True, kw_only=True)
    class Options(LabelAttack.Options):
        clip_start: bool | None = False
        robust_weight: float = 0.5
        standard_weight: float = 0.25
        temperature: float = 1.0

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("robust_weight", low=0)
            self._number("standard_weight", low=0)
            self._positive("temperature")

    options: Options
    least_teachers = most_teachers = 2
    teacher_roles: ClassVar[tuple[str, ...]] = ("robust", "standard")
