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
    `torch.optim.lr_scheduler.MultiStepLR`. The validation attack is PGD with `val_steps` steps of
    `val_alpha` (None: eps / 4), run every `eval_every` epochs and in each from `eval_from` on.
    """

    name: str
    method: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    options_by_data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    student: str = "resnet18"
    epochs: int
    milestones: tuple[int, ...]
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 2e-4
    nesterov: bool = False
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


_TRADES = Preset(
    name="trades",
    method="trades",
    source="github.com/yaodongyu/TRADES, train_trades_cifar10.py",
    student="wrn-34-10",
    epochs=76,
    milestones=(74, 89, 99),
)
_RSLAD = Preset(
    name="rslad",
    method="rslad",
    source="github.com/zibojia/RSLAD, resnet18_rslad_cifar10.py, resnet18_rslad_cifar100.py",
    options_by_data={"cifar100": {"scale": 10.0}},
    epochs=300,
    milestones=(215, 260, 285),
)
_PGD_AT = Preset(
    name="pgd-at",
    method="pgd-at",
    source="hyper-parameters of github.com/locuslab/robust_overfitting, train_cifar.py",
    epochs=200,
    milestones=(100, 150),
    weight_decay=5e-4,
)

PRESETS = {
    preset.name: preset
    for preset in (
        replace(
            _PGD_AT,
            name="natural",
            method="natural",
            source="the customary recipe of CIFAR ResNets",
        ),
        _PGD_AT,
        _TRADES,
        _RSLAD,
        replace(
            _RSLAD,
            name="rslad-batchmean",
            method="rslad-batchmean",
            source=f"{_RSLAD.source}; the loss as later papers scale it",
            options_by_data={},
        ),
        replace(
            _RSLAD,
            name="rslad-official",
            options={"noise_device": "cpu"},
            selection="test-selected",
            val_steps=20,
            val_alpha=0.003,
            eval_every=20,
            eval_from=215,
            official=True,
        ),
        replace(
            _TRADES,
            name="trades-official",
            source=f"{_TRADES.source}, which keeps the last epoch",
            options={"eps": 0.031, "alpha": 0.007, "faithful": True, "noise_device": "cpu"},
            selection="last",
            official=True,
        ),
        Preset(
            name="madry",
            method="pgd-at",
            source="github.com/MadryLab/cifar10_challenge, config.json: 80,000 steps, drops at "
            "40,000 and 60,000, here in epochs of 391 steps; it keeps the last step",
            options={"attack_mode": "train"},
            student="wrn-34-10",
            epochs=205,
            milestones=(102, 153),
            selection="last",
            official=True,
        ),
    )
}
