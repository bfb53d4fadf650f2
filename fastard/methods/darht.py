"""DARHT: several unlike teachers, each with a row of its own in the student (Deng et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from fastard import losses
from fastard.api import inner_model
from fastard.methods.base import Logs, accuracy, require_labels
from fastard.methods.label_attack import LabelAttack
from fastard.methods.recipes import Preset
from fastard.models import LogitMap
from fastard.models.logit_map import COMBINES

RECIPE = Preset(
    name="darht",
    method="darht",
    source="the method of arXiv 2402.15586 with RSLAD's hyper-parameters; the paper's own are not "
    "confirmed by its text",
    epochs=300,
    milestones=(215, 260, 285),
)


class DARHT(LabelAttack):
    """Distils several unlike teachers into a student that models each one's logits.

    Equivalent to, for a student that is a `fastard.models.LogitMap`::

        x_adv = fastard.pgd_ce(student, x, y)  # of the combined prediction
        losses.darht(student.map(x_adv), [teacher(x_adv) for teacher in teachers])

    Each teacher sees x' (option: x), none is in the attack. The student sees x', and x second where
    the clean term has weight. Passes of a step with k attack steps, student / each teacher: k + 1
    / 1, or k + 2 / 2 with a clean term at other images than the teachers saw.

    Confirmed by the paper: several teachers of different architecture or training, chosen for low
    transferability between them (`fastard.transfer`), a map of their logits in the student, Monte
    Carlo dropout. The attack, the loss and its weights, what the teachers see and how the rows make
    a prediction are not confirmed by the paper's text; all are options.

    Source: Deng et al. 2024 (arXiv 2402.15586).
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(LabelAttack.Options):
        temperature: float = 1.0
        """Of every teacher's term; not confirmed by the paper's text."""
        teacher_input: str = "adversarial"
        """Which images the teachers' rows are taught on x': the "adversarial" ones or "clean" x;
        not confirmed by the paper's text."""
        teacher_weights: tuple[float, ...] | None = None
        """One for each teacher; None: equal. Not confirmed by the paper's text."""
        clean_weight: float = 0.0
        """Of the same loss on x; not confirmed by the paper's text."""
        label_weight: float = 0.0
        """Of the cross entropy of the combined prediction on x', the distilled part having the
        rest; not confirmed by the paper's text."""
        dropout: float = 0.0
        """Of the student that `make_student` builds, in front of its head."""
        mc_samples: int = 0
        """Monte Carlo draws of that dropout in eval mode."""
        combine: str = "probabilities"
        """Of that student: the mean of its rows' "probabilities" or "logits", or a learned "layer"
        over the rows' logits, which the labels alone teach; not confirmed by the paper's text."""
        mc_train_samples: int = 1
        """Draws of that dropout for each image in training: each draw's rows are taught, and the
        prediction is of all of them; not confirmed by the paper's text."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._positive("temperature")
            self._one_of("teacher_input", ("adversarial", "clean"))
            if self.teacher_weights is not None:
                self._numbers("teacher_weights", low=0)
            self._number("clean_weight", low=0)
            self._number("label_weight", low=0, high=1)
            self._number("dropout", low=0, high=0.99)
            self._count("mc_samples", least=0)
            self._one_of("combine", COMBINES)
            self._count("mc_train_samples")
            if self.combine == "layer" and not self.label_weight:
                raise ValueError(
                    "option label_weight must be above 0 with combine 'layer', which learns from "
                    f"the labels alone, but is {self.label_weight!r}."
                )

    options: Options
    name = "darht"
    presets: ClassVar[tuple[Preset, ...]] = (
        RECIPE,
        replace(RECIPE, name="darht-mc-dropout", options={"dropout": 0.2, "mc_samples": 8}),
    )
    least_teachers = 1
    most_teachers = None

    def __init__(
        self, student: nn.Module, teachers: nn.Module | Sequence[nn.Module] = (), **options: Any
    ):
        super().__init__(student, teachers, **options)
        inner, _ = inner_model(student)
        count = len(self.teachers)
        if not isinstance(inner, LogitMap) or inner.teachers != count:
            has = f"one of {inner.teachers}" if isinstance(inner, LogitMap) else "a"
            raise ValueError(
                f"student must be a fastard.models.LogitMap of {count} teachers, as "
                f"DARHT.make_student builds it, but is {has} {type(inner).__name__}."
            )
        weights = self.options.teacher_weights
        if weights is not None and len(weights) != count:
            raise ValueError(
                f"option teacher_weights must be {count}, one for each teacher, but are "
                f"{len(weights)}."
            )
        self.logit_map: LogitMap
        object.__setattr__(self, "logit_map", inner)

    @classmethod
    def make_student(
        cls,
        build: Callable[[int], nn.Module],
        num_classes: int,
        teachers: int,
        options: Mapping[str, Any],
    ) -> nn.Module:
        defaults = cls.Options()
        given = {
            name: options.get(name, getattr(defaults, name))
            for name in ("dropout", "mc_samples", "combine", "mc_train_samples")
        }
        return LogitMap(build(teachers * num_classes), teachers, num_classes, **given)

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        options = self.options
        seen = x_adv if options.teacher_input == "adversarial" else x
        targets = self._ask_teachers(seen, remember=True)
        rows = self.student(x_adv, rows=True)
        loss = self._distilled(rows, targets)
        prediction = self.logit_map.predict(rows)
        require_labels(y, prediction)
        logs = {"robust_accuracy": accuracy(prediction, y)}
        if options.clean_weight:
            clean_rows = self.student(x, rows=True)
            clean_targets = targets if seen is x else self._ask_teachers(x)
            loss = loss + options.clean_weight * self._distilled(clean_rows, clean_targets)
            logs["clean_accuracy"] = accuracy(self.logit_map.predict(clean_rows), y)
        if options.label_weight:
            labels = F.cross_entropy(prediction, y)
            loss = (1 - options.label_weight) * loss + options.label_weight * labels
        return loss, {"loss": loss.detach(), **logs}

    def _distilled(self, rows: torch.Tensor, targets: list[torch.Tensor]) -> torch.Tensor:
        draws = len(rows) // len(targets[0])
        if draws > 1:
            targets = [each.repeat(draws, 1) for each in targets]
        return losses.darht(rows, targets, self.options.temperature, self.options.teacher_weights)
