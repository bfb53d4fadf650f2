"""Published training recipes: a method, its options and the hyper-parameters around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SELECTIONS = {
    "held-out": "best epoch on a held-out part of the training set",
    "test-selected": "test-selected, best epoch on the test set as in the published code",
    "last": "last epoch, trained on the whole training set",
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A recipe for CIFAR; `fastard train --method NAME` starts from it.

    `milestones` are numbers of finished epochs after which the learning rate falls tenfold, as in
    `torch.optim.lr_scheduler.MultiStepLR`; `peak` is the share of the steps after which "onecycle"
    and "cyclic" are at `lr`. `average_start` is the first epoch, counted from 1, that enters the
    `average` of the weights ("ema" or "swa"). The validation attack is PGD with `val_steps` steps
    of `val_alpha` (None: eps / 4), run every `eval_every` epochs and in each from `eval_from` on.
    """

    name: str
    method: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    options_by_data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipe_by_data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What of the fields below is otherwise on this data set."""
    student: str = "resnet18"
    epochs: int
    schedule: str = "multistep"
    milestones: tuple[int, ...] = ()
    peak: float | None = None
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 2e-4
    nesterov: bool = False
    average: str = "none"
    average_start: int | None = None
    selection: str = "held-out"
    val_steps: int = 10
    val_alpha: float | None = None
    eval_every: int = 1
    eval_from: int | None = None
    official: bool = False
    """Keeps every value of the published code, on any data set."""

    def options_for(self, data: str | None = None) -> dict[str, Any]:
        """The method's options, with what the recipe changes on this data set."""
        return {**self.options, **self.options_by_data.get(data or "", {})}


def customary(name: str) -> Preset:
    """The customary recipe of CIFAR ResNets, for a method that was published with another one."""
    return Preset(
        name=name,
        method=name,
        source="the customary recipe of CIFAR ResNets",
        epochs=200,
        milestones=(100, 150),
        weight_decay=5e-4,
    )


def from_iad(name: str, script: str) -> Preset:
    """The recipe of a script of github.com/ZFancy/IAD, with both drops of the learning rate."""
    return Preset(
        name=name,
        method=name,
        source=f"github.com/ZFancy/IAD, {script}, with the second drop of its schedule, whose code "
        "sets 0.01 again",
        epochs=200,
        milestones=(100, 150),
    )


def as_in_iad(recipe: Preset, name: str, source: str, **options: Any) -> Preset:
    """A recipe as the scripts of github.com/ZFancy/IAD run it; they attack in train mode."""
    return replace(
        recipe,
        name=name,
        source=source,
        options={"attack_mode": "train", **options},
        student="resnet18",
        milestones=(100,),
        selection="test-selected",
        val_alpha=2 / 255,
        official=True,
    )
