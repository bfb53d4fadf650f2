"""AdvFunMatch, adversarial function matching (Wu et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fastard import losses
from fastard.api import pgd_kl_pair
from fastard.methods.base import Logs, Method, accuracy
from fastard.methods.options import AttackOptions
from fastard.methods.recipes import Preset
from fastard.methods.strong_views import AUGMENTS, MIXES, POLICIES, mixed, policy_views

RECIPE = Preset(
    name="advfunmatch",
    method="advfunmatch",
    source="the objective of arXiv 2305.14700 with AdaAD's hyper-parameters; the paper's own are "
    "not confirmed by its text",
    epochs=200,
    milestones=(100, 150),
    weight_decay=5e-4,
)


class AdvFunMatch(Method):
    """Makes student and teacher agree everywhere in the ball around strongly augmented images.

    Equivalent to::

        x = mixed(policy_views(x))  # once, before the attack
        x_adv = fastard.pgd_kl_pair(student, teacher, x)  # max KL(T(x') || S(x')), through both
        loss = losses.advfunmatch(student(x_adv), teacher(x_adv))
        loss + clean_weight * losses.advfunmatch(student(x), teacher(x))

    Student and teacher see the same x', then, where the clean term has weight, the same augmented
    x; no label: y serves the logs alone, where a mixed image counts as the one that most of it is.
    Passes of a step with k attack steps through each network: k + 1, or k + 2 with a clean term.

    The paper's abstract confirms the two objectives and the shared strong augmentation. Everything
    else is not confirmed by the paper's text: the direction of the divergence, the temperature, the
    absence of a clean term, the attack's start and steps, which augmentations go together. Nor is
    the attack's gradient through the teacher: it is inferred from the objective, whose x' both
    networks see, and is no option.

    Source: Wu et al. 2023 (arXiv 2305.14700).
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(AttackOptions):
        kl_direction: str = "teacher||student"
        """Of attack and loss; not confirmed by the paper's text."""
        temperature: float = 1.0
        """Of attack and loss; not confirmed by the paper's text."""
        reduction: str = "batchmean"
        clean_weight: float = 0.0
        """Of the same divergence on the augmented x; not confirmed by the paper's text."""
        augment: str = "none"
        """Or "autoaugment", "randaugment": an image at a time, after the data set's own crop."""
        policy: str = "cifar10"
        """AutoAugment's."""
        randaugment_ops: int = 2
        randaugment_magnitude: int = 9
        mix: str = "none"
        """Or "mixup", "cutmix", "mixup-or-cutmix"; labels are not mixed, since none is used."""
        mix_alpha: float = 1.0

        def __post_init__(self) -> None:
            super().__post_init__()
            self._one_of("kl_direction", losses.KL_DIRECTIONS)
            self._positive("temperature")
            self._one_of("reduction", losses.REDUCTIONS)
            self._number("clean_weight", low=0)
            self._one_of("augment", AUGMENTS)
            self._one_of("policy", POLICIES)
            self._count("randaugment_ops")
            self._count("randaugment_magnitude", least=0)
            self._number("randaugment_magnitude", high=30)
            self._one_of("mix", MIXES)
            self._positive("mix_alpha")

    options: Options
    name = "advfunmatch"
    presets: ClassVar[tuple[Preset, ...]] = (
        RECIPE,
        replace(RECIPE, name="advfunmatch-autoaugment", options={"augment": "autoaugment"}),
        replace(RECIPE, name="advfunmatch-randaugment", options={"augment": "randaugment"}),
        replace(RECIPE, name="advfunmatch-mixup", options={"mix": "mixup"}),
        replace(RECIPE, name="advfunmatch-cutmix", options={"mix": "cutmix"}),
    )
    least_teachers = most_teachers = 1

    def views(self, x: torch.Tensor) -> torch.Tensor:
        options = self.options
        x = policy_views(
            x,
            options.augment,
            policy=options.policy,
            num_ops=options.randaugment_ops,
            magnitude=options.randaugment_magnitude,
        )
        return mixed(x, options.mix, options.mix_alpha)

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        first, second = self.student, self.teachers[0]
        if self.options.kl_direction == "student||teacher":
            first, second = second, first
        return pgd_kl_pair(
            first, second, x, temperature=self.options.temperature, **self._attack_arguments()
        )

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        options = self.options
        divergence = (options.temperature, options.kl_direction, options.reduction)
        # Ahead of x', whose logits are the ones to remember.
        clean_targets = self._ask_teachers(x) if options.clean_weight else []
        (teacher_logits,) = self._ask_teachers(x_adv, remember=True)
        logits = self.student(x_adv)
        loss = losses.advfunmatch(logits, teacher_logits, *divergence)
        logs = {
            "robust_accuracy": accuracy(logits, y),
            "teacher_agreement": accuracy(logits, teacher_logits.argmax(1)),
        }
        for target in clean_targets:
            clean_logits = self.student(x)
            clean = losses.advfunmatch(clean_logits, target, *divergence)
            loss = loss + options.clean_weight * clean
            logs["clean_accuracy"] = accuracy(clean_logits, y)
        return loss, {"loss": loss.detach(), **logs}
