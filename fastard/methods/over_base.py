"""A method on top of another one, whose options pass through to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from fastard.methods.base import Method
from fastard.methods.options import AttackOptions, MethodOptions, plain_names
from fastard.methods.recipes import Preset


class OverBase(Method):
    """A method that attacks as its base does and adds to its loss.

    `base` names a method or preset with a PGD attack; options that are not this method's own are
    the base's. A base that takes no teacher is built without one, and this method alone asks the
    teacher. The base is a submodule, so its state is part of this method's.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(MethodOptions):
        base: str = ""

    base: Method
    default_base: ClassVar[str]
    """The base where none is named."""
    least_teachers = 1
    most_teachers = None

    def __init__(
        self, student: nn.Module, teachers: nn.Module | Sequence[nn.Module] = (), **options: Any
    ):
        own, rest = self._divided(self.known(options))
        super().__init__(student, teachers, **own)
        recipe, base = self._recipe(options), self._base_class(options)
        if base.most_teachers == 0 and len(self.teachers) > 1:
            raise ValueError(
                f"method {self.name!r} on base {base.name!r} takes one teacher, but was given "
                f"{len(self.teachers)}."
            )
        teachers = self.teachers if base.most_teachers != 0 else ()
        self.base = base(student, teachers, **{**recipe.options_for(), **rest})

    @classmethod
    def _recipe(cls, options: Mapping[str, Any]) -> Preset:
        # The registry imports this module.
        from fastard.methods import registry

        return registry.preset(options.get("base", cls.default_base))

    @classmethod
    def _base_class(cls, options: Mapping[str, Any]) -> type[Method]:
        from fastard.methods import registry

        base = registry.METHODS[cls._recipe(options).method]
        if not issubclass(base.Options, AttackOptions):
            raise ValueError(
                f"option base must be a method with a PGD attack of its own, but is {base.name!r}."
            )
        if base.trains_teachers:
            raise ValueError(
                f"option base must be a method whose teachers stay fixed, but is {base.name!r}."
            )
        return base

    @classmethod
    def _divided(cls, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options of this method and those of the base."""
        own = plain_names(cls.Options)
        return (
            {name: value for name, value in options.items() if name in own},
            {name: value for name, value in options.items() if name not in own},
        )

    @classmethod
    def option_names(cls) -> list[str]:
        """This method's own options and those of any attack; `known` asks the base as well."""
        return [*plain_names(cls.Options), *plain_names(AttackOptions), "generator"]

    @classmethod
    def known(cls, options: dict[str, Any]) -> dict[str, Any]:
        names = [*plain_names(cls.Options), *cls._base_class(options).option_names()]
        for name in options:
            if name not in names:
                raise cls._unknown_option(name, names)
        return options

    @classmethod
    def plain_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        own, rest = cls._divided(cls.known(options))
        cls.Options(**own)
        cls._base_class(options).plain_options(rest)
        return options

    @classmethod
    def data_options(cls, options: Mapping[str, Any], data: str | None) -> dict[str, Any]:
        """What the base's recipe changes on this data set, but for options of this method's own."""
        _, rest = cls._divided(cls._recipe(options).options_by_data.get(data or "", {}))
        return rest

    @classmethod
    def make_student(
        cls,
        build: Callable[[int], nn.Module],
        num_classes: int,
        teachers: int,
        options: Mapping[str, Any],
    ) -> nn.Module:
        _, rest = cls._divided(options)
        return cls._base_class(options).make_student(build, num_classes, teachers, rest)

    def on_epoch(self, epoch: int, epochs: int) -> None:
        self.base.on_epoch(epoch, epochs)

    def views(self, x: torch.Tensor) -> torch.Tensor:
        return self.base.views(x)

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.base.attack(x, y)

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={getattr(self.options, k)!r}" for k in plain_names(self.Options))
