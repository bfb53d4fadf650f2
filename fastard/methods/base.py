"""What every training method shares: its options, its teachers and the calls of a training step."""

from __future__ import annotations

import contextlib
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import nn

from fastard import checks
from fastard.api import clean_eval_logits
from fastard.kinds import unknown
from fastard.methods.logit_cache import LogitCache
from fastard.methods.options import AttackOptions, MethodOptions, plain_names
from fastard.methods.recipes import Preset

Logs = dict[str, torch.Tensor]


class Method(nn.Module, ABC):
    """A training method: ``loss, logs = method(x, y)`` attacks the student and gives the loss.

    Backpropagate the loss and step an optimiser over `trainable_parameters()`; a method never does
    either itself. The student's train and eval flags are the caller's: put it in train mode, as
    for any loop; attacks restore the flags they change.

    Student and teachers are not submodules, so `state_dict()` holds what belongs to the method
    alone (ramps, dynamic weights, helpers) and `to()` or `train()` leave both networks as they
    are: save and place them on their own. Both see raw images in [0, 1] and carry their own
    normaliser (`fastard.models.Normalized`); teachers run in eval mode and without gradient.

    Args:
        student: the network that is trained.
        teachers: as many teachers as the method takes; one may stand alone.
        options: fields of the class's `Options`.

    Raises ValueError for an option that is unknown or out of range or a wrong number of teachers,
        TypeError for a network that is none.
    """

    name: ClassVar[str]
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    presets: ClassVar[tuple[Preset, ...]] = ()
    """Published recipes; the first bears the method's own name."""
    least_teachers: ClassVar[int] = 0
    most_teachers: ClassVar[int | None] = 0
    """None: as many as are given."""
    teacher_roles: ClassVar[tuple[str, ...]] = ()
    """What each teacher is, in the order in which they are given; empty where all are alike."""
    trains_teachers: ClassVar[bool] = False
    """Whether its teachers are trained along, as submodules, in place of being asked."""
    selects_on: ClassVar[str] = "robust"
    """The validation accuracy by which a run's best epoch is chosen: "robust", "clean" or
    "weighted", their mean."""
    teacher_sees_clean: bool = False
    """Whether the teachers, fixed ones, are asked for the clean images alone: their logits may then
    be cached."""
    student: nn.Module
    options: MethodOptions

    def __init__(
        self, student: nn.Module, teachers: nn.Module | Sequence[nn.Module] = (), **options: Any
    ):
        super().__init__()
        if not isinstance(student, nn.Module):
            raise TypeError(f"student must be an nn.Module, but is {checks.describe(student)}.")
        self.options = self.Options(**self.known(options))
        # A registered submodule would enter state_dict(), to() and train().
        object.__setattr__(self, "student", student)
        self.teachers = self._counted(teachers)
        for teacher in self.teachers:
            teacher.eval()
        self.attack_timer: contextlib.AbstractContextManager = contextlib.nullcontext()
        self.teacher_timer: contextlib.AbstractContextManager = contextlib.nullcontext()
        self._remembered: tuple[weakref.ref, list[torch.Tensor]] | None = None
        self._cache: LogitCache | None = None
        self._keys: tuple[weakref.ref, torch.Tensor, torch.Tensor] | None = None
        self._widths: list[int] = []

    @property
    def cache(self) -> LogitCache | None:
        """The teachers' logits of earlier batches; set it, and give `index` and `view` with each.

        Raises ValueError when set for a method whose teachers see attacked images, which never come
        again, or which has no teacher.
        """
        return self._cache

    @cache.setter
    def cache(self, cache: LogitCache | None) -> None:
        if cache is not None and not (self.teacher_sees_clean and self.teachers):
            why = "its teacher sees images that never come again"
            if not self.teachers:
                why = "it has no teacher"
            raise ValueError(f"method {self.name!r} cannot use a logit cache: {why}.")
        self._cache = cache

    @classmethod
    def option_names(cls) -> list[str]:
        """The names of the options that `methods.build` takes for this method."""
        return [field.name for field in fields(cls.Options)]

    @classmethod
    def plain_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Returns options given as text unchanged; raises ValueError for one that cannot be."""
        names = plain_names(cls.Options)
        for name in options:
            if name not in names:
                raise cls._unknown_option(name, names)
        cls.Options(**options)
        return options

    @classmethod
    def _unknown_option(cls, name: str, names: list[str]) -> ValueError:
        return unknown(f"option of method {cls.name!r}:", name, names or ["none"])

    @classmethod
    def known(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Returns the options unchanged; raises ValueError naming the first that is unknown."""
        names = cls.option_names()
        for name in options:
            if name not in names:
                raise cls._unknown_option(name, names)
        return options

    @classmethod
    def _counted(cls, teachers: nn.Module | Sequence[nn.Module]) -> tuple[nn.Module, ...]:
        # One network may be iterable itself; a ModuleList is none.
        if isinstance(teachers, nn.Module) and not isinstance(teachers, nn.ModuleList):
            teachers = [teachers]
        if not isinstance(teachers, (Sequence, nn.ModuleList)):
            raise TypeError(
                "teachers must be an nn.Module or a sequence of them, but is "
                f"{checks.describe(teachers)}."
            )
        for teacher in teachers:
            if not isinstance(teacher, nn.Module):
                raise TypeError(
                    f"every teacher must be an nn.Module, but one is {checks.describe(teacher)}."
                )
        cls.require_teachers(len(teachers))
        return tuple(teachers)

    @classmethod
    def require_teachers(cls, count: int) -> None:
        """Raises ValueError where the method takes another number of teachers."""
        least, most = cls.least_teachers, cls.most_teachers
        if least <= count and (most is None or count <= most):
            return
        wanted = f"{least} to {most} teachers"
        if most is None:
            wanted = f"at least {'one teacher' if least == 1 else f'{least} teachers'}"
        elif least == most:
            wanted = {0: "no teacher", 1: "one teacher"}.get(least, f"{least} teachers")
        if cls.teacher_roles:
            wanted += f" ({', then '.join(cls.teacher_roles)})"
        raise ValueError(f"method {cls.name!r} takes {wanted}, but was given {count}.")

    @classmethod
    def data_options(cls, options: Mapping[str, Any], data: str | None) -> dict[str, Any]:
        """Options that hold on this data set where neither recipe nor user says otherwise.

        `options` are those that are known so far. Empty but for a method on top of another, whose
        recipe for the data set this is.
        """
        return {}

    @classmethod
    def make_student(
        cls,
        build: Callable[[int], nn.Module],
        num_classes: int,
        teachers: int,
        options: Mapping[str, Any],
    ) -> nn.Module:
        """Returns the student that this method trains, made by `build(number of outputs)`.

        Most methods train a network of `num_classes` outputs as it is; one that gives it a head of
        its own wraps it here.
        """
        return build(num_classes)

    def forward(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        index: torch.Tensor | None = None,
        view: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Logs]:
        """Attacks a batch and returns the training loss and the logs.

        Args:
            x: [B, C, H, W] images in [0, 1], at least one.
            y: [B] labels of an integer dtype.
            index, view: which training image and which crop and flip of it each row is, [B], as in
                `fastard.data.Batch`; needed by a `cache` and by nothing else.

        Returns: the 0-dim loss with its graph, and logs, detached 0-dim tensors by name.

        Raises TypeError or ValueError for an empty batch, labels that are none, or a cache without
        index and view.
        """
        checks.floating(x, "x")
        if len(x) == 0:
            raise ValueError(f"x must hold at least one image, but has shape {list(x.shape)}.")
        y = checks.labels(y, len(x), x.device).to(torch.int64)
        if self._cache is not None:
            if index is None or view is None:
                raise ValueError("index and view must be given with a logit cache, but are None.")
            self._keys = (weakref.ref(x), index, view)
        x = self.views(x)
        with self.attack_timer:
            x_adv = self.attack(x, y)
        return self.outer(x, x_adv, y)

    def views(self, x: torch.Tensor) -> torch.Tensor:
        """The images that attack, student and teachers share in place of x; mostly x itself."""
        return x

    @abstractmethod
    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Returns the adversarial images of this batch, detached."""

    @abstractmethod
    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        """Returns the loss that trains the student, with its graph, and the logs."""

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Tells the method that epoch `epoch` of `epochs`, counted from 1, begins."""

    @property
    def replays(self) -> int:
        """How often a trainer calls the method on each batch, stepping its optimiser each time."""
        return 1

    def after_backward(self) -> None:
        """Tells the method that its loss was backpropagated; call it before the optimiser steps.

        Only a method that attacks with the gradients of the training pass needs the call.
        """

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters to optimise: the student's and the method's own."""
        yield from self.student.parameters()
        yield from self.parameters()

    def _attack_arguments(self) -> dict[str, Any]:
        """The attack's settings as keyword arguments of `fastard.pgd_*`."""
        return {field.name: getattr(self.options, field.name) for field in fields(AttackOptions)}

    def _update_statistics(self, x: torch.Tensor) -> None:
        """A pass whose output the published code does not use: it moves BatchNorm statistics."""
        with torch.no_grad():
            self.student(x)

    def _ask_teachers(self, x: torch.Tensor, *, remember: bool = False) -> list[torch.Tensor]:
        """The teachers' logits of x; remembered, they answer the next question for this very x."""
        with self.teacher_timer:
            if self._cache is not None and self._keys is not None and self._keys[0]() is x:
                _, index, view = self._keys
                joined = self._cache.logits(x, index, view, self._joined_logits)
                if not self._widths:
                    # Every row was known from another method with the same teachers.
                    self._joined_logits(x[:1])
                logits = list(joined.split(self._widths, 1))
            else:
                logits = [clean_eval_logits(teacher.eval(), x) for teacher in self.teachers]
        self._remembered = (weakref.ref(x), logits) if remember else None
        return logits

    def _joined_logits(self, x: torch.Tensor) -> torch.Tensor:
        logits = [clean_eval_logits(teacher.eval(), x) for teacher in self.teachers]
        self._widths = [each.shape[1] for each in logits]
        return torch.cat(logits, 1)

    def _teacher_logits(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What the attack on this very x left behind, once; else a fresh answer."""
        remembered, self._remembered = self._remembered, None
        if remembered is not None and remembered[0]() is x:
            return remembered[1]
        return self._ask_teachers(x)

    def __getstate__(self) -> dict[str, Any]:
        # Weak references cannot be pickled, and what they remember is of one batch; a copy starts
        # with a cache of its own, where it is given one.
        return {**self.__dict__, "_remembered": None, "_keys": None, "_cache": None}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self.options, name)!r}" for name in self.option_names())


def require_labels(y: torch.Tensor, logits: torch.Tensor) -> None:
    """Raises ValueError for a label that is no class; on the CPU only, where reading is free."""
    if y.device.type == "cpu":
        checks.labels_below(y, logits.shape[1])


def accuracy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The share of rows whose largest logit is the label's, as a detached 0-dim tensor."""
    return (logits.detach().argmax(1) == y).float().mean()
