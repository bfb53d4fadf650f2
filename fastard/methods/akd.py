"""AKD, adversarial knowledge distillation (Maroto et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from fastard import losses
from fastard.api import pgd
from fastard.methods.base import Logs, accuracy
from fastard.methods.label_attack import LabelAttack
from fastard.methods.recipes import Preset


class AKD(LabelAttack):
    """Trains adversarially on labels mixed with the outputs of one or several teachers.

    Equivalent to::

        x_adv = fastard.pgd_ce(student, x, y)
        teacher_logits = losses.ensemble_logits([teacher(x_adv) for teacher in teachers])
        losses.kd(student(x_adv), teacher_logits, y, teacher_weight, temperature)

    The paper's text confirms that labels and teacher outputs are mixed and that student and teacher
    are matched on x'. Not confirmed by it, and options here: the weight, the temperature, what of
    an ensemble is averaged, the attack, its start, and whether it follows plain or mixed labels.
    The student sees x' alone, a teacher x' too.

    The paper's other ingredients belong to runs, not to this loss. Early stopping: take the best
    epoch of the run, for the teachers too. Weak teachers: adversarially trained ones of a smaller
    eps, or fewer steps, than the student's (which eps is not confirmed).

    Source: Maroto, Ortiz-Jimenez & Frossard 2022 (arXiv 2203.07159). Not `akd2` (Chen et al. 2021).
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(LabelAttack.Options):
        teacher_weight: float = 0.5
        """Share of the teachers' outputs in the mixed labels; not confirmed by the paper's text."""
        temperature: float = 1.0
        """Of student and teachers; not confirmed by the paper's text."""
        ensemble: str = "probabilities"
        """What of several teachers is averaged, "probabilities" or "logits"; not confirmed."""
        teacher_input: str = "adversarial"
        """What the teachers see: "adversarial" images, as in the paper, or "clean" ones."""
        attack_labels: str = "hard"
        """What the attack leads away from: "hard" labels, or "mixed" ones, with the teachers'
        outputs on x; not confirmed by the paper's text."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("teacher_weight", low=0, high=1)
            self._positive("temperature")
            self._one_of("ensemble", losses.ENSEMBLES)
            self._one_of("teacher_input", ("adversarial", "clean"))
            self._one_of("attack_labels", ("hard", "mixed"))

    options: Options
    name = "akd"
    presets: ClassVar[tuple[Preset, ...]] = (
        Preset(
            name="akd",
            method="akd",
            source="the recipe of pgd-at; the paper's text confirms no hyper-parameter",
            epochs=200,
            milestones=(100, 150),
            weight_decay=5e-4,
        ),
    )
    least_teachers = 1
    most_teachers = None

    def __init__(
        self, student: nn.Module, teachers: nn.Module | Sequence[nn.Module] = (), **options: Any
    ):
        super().__init__(student, teachers, **options)
        self.teacher_sees_clean = self.options.teacher_input == "clean"

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        options = self.options
        if options.attack_labels == "hard":
            return super().attack(x, y)
        clean = self._ensemble(self._ask_teachers(x, remember=options.teacher_input == "clean"))
        arguments = self._attack_arguments()
        if arguments["random_start"] is True:
            arguments["random_start"] = "uniform"
        return pgd(
            self.student,
            x,
            clean,
            loss="mixture",
            labels=y,
            mix=options.teacher_weight,
            temperature=options.temperature,
            **self._mode(),
            **arguments,
        )

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        options = self.options
        clean = options.teacher_input == "clean"
        answers = self._teacher_logits(x) if clean else self._ask_teachers(x_adv, remember=True)
        adv_logits = self.student(x_adv)
        loss = losses.kd(
            adv_logits, self._ensemble(answers), y, options.teacher_weight, options.temperature
        )
        return loss, {"loss": loss.detach(), "robust_accuracy": accuracy(adv_logits, y)}

    def _ensemble(self, logits: list[torch.Tensor]) -> torch.Tensor:
        return losses.ensemble_logits(logits, self.options.ensemble, self.options.temperature)
