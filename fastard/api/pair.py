"""`PairPGD`: PGD through student and teacher at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastard import checks
from fastard.api.attack import Attack, Bound
from fastard.api.pgd import Statistics
from fastard.api.run import Ascent, Goal
from fastard.engine import PairGradient, Program
from fastard.engine.capture import Values
from fastard.engine.recorder import Lane
from fastard.engine.unwrap import Model
from fastard.kinds import Norm
from fastard.settings import check_values
from fastard.shapes import per_channel


class PairPGD(Attack):
    """PGD on KL(teacher(x') || student(x')) with the gradient through both networks.

    AdaAD (Huang et al. 2023) and AdvFunMatch (Wu et al. 2023); arguments as `PGD`. Both networks
    are attacked in eval mode; `mean` and `std` belong to the student, the teacher takes pixels.
    """

    def __init__(
        self, student: Model, teacher: Model, norm: str | float | Norm = "Linf",
        eps: Bound = 8 / 255, alpha: Bound = 2 / 255, steps: int = 10, *,
        clip_start: bool | None = None, random_start: bool | str = True, temperature: float = 1.0,
        targeted: bool = False, mean: Statistics = None, std: Statistics = None, mode: str = "eval",
        bn_stats: str = "update", precision: str | None = None, engine: bool = True,
        capture: str = "auto", check_logits: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        if clip_start is None:
            clip_start = random_start == "uniform"
        super().__init__(norm, eps, alpha, steps, random_start=random_start,
                         published_start="gaussian", clip_start=clip_start, **options)  # fmt: skip
        self.student = Program(
            student, precision, mean=mean, std=std, mode=mode, bn_stats=bn_stats, engine=engine,
            capture=capture)  # fmt: skip
        self.teacher = Program(teacher, precision, engine=engine, capture=capture)
        if mode == "train" and self.student.model is self.teacher.model:
            raise ValueError("mode='train' needs a teacher that is not the student itself.")
        self.temperature, self.targeted, self.check_logits = temperature, targeted, check_logits

    def __call__(self, x: Tensor) -> Any:
        checks.floating(x, "x")
        images = (x.shape, x.dtype, x.device)
        values = check_values(self.student.model, images, x.device.type)
        self._check_images(x, values)
        if len(x) == 0:
            return self._empty(x)

        def bind(held: Values, lane: Lane | None) -> Ascent:
            pair = PairGradient(
                self.student, self.teacher, temperature=self.temperature, targeted=self.targeted,
                check_logits=self.check_logits and values and lane is None,
                side=None if lane is None else lane.side)  # fmt: skip

            def gradient(feed: Tensor, x_adv: Tensor) -> Tensor:
                _, through_student, through_teacher = pair(feed, x_adv)
                std = self.student.feed(x_adv).std
                if std is None:
                    return through_student + through_teacher
                # The step's gradient is in the student's prepared input.
                per_pixel = per_channel(std.to(through_teacher.dtype), x_adv)
                return through_student + through_teacher * per_pixel

            return gradient, pair.value

        key = ("PairPGD", self.temperature, self.targeted)
        goal = Goal([self.student, self.teacher], key, {}, bind)
        return self._attack(goal, x, values, self.explain)

    def explain(self) -> str:
        """What runs where, student first."""
        return f"student\n{self.student.explain()}\nteacher\n{self.teacher.explain()}"
