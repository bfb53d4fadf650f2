"""The libraries that fastard is timed against: their versions, and PGD as their users call it.

Each attack takes the network in eval mode, images in [0, 1] and labels, and returns x_adv. A
library's `attack` says how it is reached; one that is not installed, or does not offer a norm, is
told so in a row of its own.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import published

Attack = Callable[[], Tensor]
INSTALL = "pip install 'fastard[bench]'"
APART = {"adv-lib": "pip install 'fastard[adv-lib]', whose visdom builds with setuptools below 81"}


class Absent(Exception):
    """A rival that cannot take part, with the reason."""


@dataclass(frozen=True)
class Setting:
    """One attack on one batch, the same for all."""

    model: nn.Module
    x: Tensor
    y: Tensor
    norm: str
    eps: float
    alpha: float
    steps: int


@dataclass(frozen=True)
class Rival:
    """`package` is its name on PyPI, `module` what Python imports; None: it is part of this."""

    package: str | None
    module: str | None
    attack: Callable[[Any, Setting], Attack]


def versions() -> dict[str, str | None]:
    """Every rival's version, and timm's, by its package; None for one that is not installed."""
    packages = [r.package for r in RIVALS.values() if r.package] + ["pyautoattack", "timm"]
    return {package: version(package) for package in packages}


def version(package: str | None) -> str | None:
    try:
        return importlib.metadata.version(package) if package else None
    except importlib.metadata.PackageNotFoundError:
        return None


def imported(package: str, module: str) -> Any:
    """The rival's module; raises Absent with the reason where it cannot be imported."""
    if version(package) is None:
        raise Absent(f"{package} is not installed: {APART.get(package, INSTALL)}")
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a library of others raises when it is imported
        raise Absent(f"{package} cannot be imported: {type(error).__name__}: {error}") from error


def made(name: str, setting: Setting) -> Attack:
    """The named rival's attack; raises Absent where it cannot be had."""
    rival = RIVALS[name]
    module = None
    if rival.package and rival.module:
        module = imported(rival.package, rival.module)
    return rival.attack(module, setting)


def _torchattacks(module: Any, s: Setting) -> Attack:
    kinds = {"Linf": "PGD", "L2": "PGDL2"}
    _offers("torchattacks", s.norm, kinds)
    attack = getattr(module, kinds[s.norm])(s.model, eps=s.eps, alpha=s.alpha, steps=s.steps)
    return lambda: attack(s.x, s.y)


def _foolbox(module: Any, s: Setting) -> Attack:
    kinds = {"Linf": "LinfPGD", "L2": "L2PGD"}
    _offers("foolbox", s.norm, kinds, "its L1 attack rescales in place of projecting")
    attack = getattr(module.attacks, kinds[s.norm])(abs_stepsize=s.alpha, steps=s.steps)
    model = module.PyTorchModel(s.model, bounds=(0, 1), device=s.x.device)
    criterion = module.criteria.Misclassification(s.y)
    return lambda: attack.run(model, s.x, criterion, epsilon=s.eps)


def _art(module: Any, s: Setting) -> Attack:
    kinds = {"Linf": float("inf"), "L2": 2}
    _offers("adversarial-robustness-toolbox", s.norm, kinds,
            "its L1 attack rescales in place of projecting")  # fmt: skip
    from art.estimators.classification import PyTorchClassifier

    with torch.no_grad():
        classes = s.model(s.x[:1]).shape[1]
    estimator = PyTorchClassifier(
        s.model, loss=nn.CrossEntropyLoss(), input_shape=tuple(s.x.shape[1:]), nb_classes=classes,
        clip_values=(0, 1), device_type="gpu" if s.x.is_cuda else "cpu")  # fmt: skip
    attack = module.ProjectedGradientDescentPyTorch(
        estimator, norm=kinds[s.norm], eps=s.eps, eps_step=s.alpha, max_iter=s.steps,
        num_random_init=1, batch_size=len(s.x), verbose=False)  # fmt: skip
    x, y = s.x.cpu().numpy(), s.y.cpu().numpy()
    return lambda: torch.from_numpy(attack.generate(x, y)).to(s.x.device)


def _adv_lib(module: Any, s: Setting) -> Attack:
    _offers("adv-lib", s.norm, {"Linf": "pgd_linf"}, "its PGD is Linf's alone")
    return lambda: module.pgd_linf(
        s.model, s.x, s.y, s.eps, steps=s.steps, absolute_step_size=s.alpha
    )


def _advertorch(_: Any, s: Setting) -> Attack:
    _offers("advertorch", s.norm, {"Linf": "", "L2": ""}, "its L1 loop is not timed")
    return lambda: published.advertorch(s.model, s.x, s.y, s.eps, s.alpha, s.steps, s.norm)


def _offers(package: str, norm: str, kinds: dict[str, Any], why: str = "") -> None:
    if norm not in kinds:
        raise Absent(f"{package} has no {norm} PGD" + (f": {why}" if why else ""))


RIVALS = {
    "torchattacks": Rival("torchattacks", "torchattacks", _torchattacks),
    "foolbox": Rival("foolbox", "foolbox", _foolbox),
    "adversarial-robustness-toolbox": Rival(
        "adversarial-robustness-toolbox", "art.attacks.evasion", _art
    ),
    "adv-lib": Rival("adv-lib", "adv_lib.attacks", _adv_lib),
    "advertorch-style loop": Rival(None, None, _advertorch),
}
