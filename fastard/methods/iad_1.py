"""IAD-I, introspective adversarial distillation (Zhu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastard import losses
from fastard.methods.base import Logs, accuracy
from fastard.methods.epoch_count import EpochCount
from fastard.methods.label_attack import LabelAttack
from fastard.methods.recipes import Preset, as_in_iad, from_iad

_RECIPE = from_iad("iad-1", "IAD-I.py")


class IAD1(EpochCount, LabelAttack):
    """Distils a robust teacher as far as it can be trusted, else the student's own clean output.

    Equivalent to, from epoch `warm_up` + 1 on::

        x_adv = fastard.pgd_ce(student, x, y, clip_start=False)
        w = losses.teacher_trust(teacher(x_adv), y, beta)
        losses.iad_1(student(x_adv), student(x), teacher(x), w)

    and before that to ARD at temperature 1. The teacher sees x (the target) and, after the warm-up,
    x' (the weight). The student sees x' first and, after the warm-up, x second; the target S(x) is
    not detached. The published code attacks in train mode, passes x' and x once more each for
    results that it discards, and gives the teacher's term the weight 1 where the paper has w.

    Source: Zhu et al. 2022 (arXiv 2106.04928), github.com/ZFancy/IAD.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(LabelAttack.Options):
        clip_start: bool | None = False
        beta: float = 0.1
        """Power of the teacher's probability in its weight w."""
        warm_up: int = 60
        """Epochs of plain distillation at the start."""
        temperature: float = 1.0
        weigh_teacher: bool = False
        """Multiplies the teacher's term by w too, as the paper writes it."""
        faithful: bool = False
        """Makes the published code's discarded passes: loss and gradient are the same, the
        BatchNorm statistics are updated twice more."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._number("beta", low=0)
            self._count("warm_up", least=0)
            self._positive("temperature")
            self._flag("weigh_teacher")
            self._flag("faithful")

    options: Options
    name = "iad-1"
    presets: ClassVar[tuple[Preset, ...]] = (
        _RECIPE,
        as_in_iad(_RECIPE, "iad-1-official", "github.com/ZFancy/IAD, IAD-I.py", faithful=True),
        as_in_iad(
            _RECIPE,
            "iad-paper",
            "the loss of Zhu et al. 2022 with the settings of github.com/ZFancy/IAD, IAD-I.py",
            faithful=True,
            weigh_teacher=True,
        ),
    )
    least_teachers = most_teachers = 1

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        options = self.options
        (teacher_logits,) = self._ask_teachers(x)
        adv_logits = self.student(x_adv)
        if options.faithful:
            self._update_statistics(x_adv)
        logs = {"robust_accuracy": accuracy(adv_logits, y)}
        if self.epoch > options.warm_up:
            (doubted_logits,) = self._ask_teachers(x_adv, remember=True)
            trust = losses.teacher_trust(doubted_logits, y, options.beta)
            clean_logits = self.student(x)
            loss = losses.iad_1(
                adv_logits,
                clean_logits,
                teacher_logits,
                trust,
                options.temperature,
                weigh_teacher=options.weigh_teacher,
            )
            logs |= {"clean_accuracy": accuracy(clean_logits, y), "teacher_trust": trust.mean()}
        else:
            loss = losses.ard(
                adv_logits,
                teacher_logits,
                temperature=options.temperature,
                reduction="batchmean",
            )
        if options.faithful:
            self._update_statistics(x)
        return loss, {"loss": loss.detach(), **logs}
