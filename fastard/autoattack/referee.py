"""The official code as referee: its verdicts on the same samples, with the same settings."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastard.autoattack.driver import AutoAttack
from fastard.engine import attack_mode
from fastard.engine.precision import arithmetic, resolve
from fastard.engine.unwrap import Model, modules_behind

# The official repository's package, and the registry's copy of it, whose arguments differ.
PACKAGES = ("autoattack", "pyautoattack")
_SETTINGS = {
    "apgd": ("n_restarts", "n_iter", "eot_iter", "use_largereps"),
    "apgd_targeted": ("n_restarts", "n_iter", "n_target_classes", "eot_iter", "use_largereps"),
    "fab": ("n_restarts", "n_iter", "n_target_classes"),
    "square": ("n_restarts", "n_queries", "p_init"),
}


def installed() -> str | None:
    """The official package that can be imported, if any."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        # Any other folder of that name is found too.
        origin = None if spec is None else spec.origin
        if origin is not None and Path(origin).with_name("autoattack.py").is_file():
            return name
    return None


@contextmanager
def _untouched(model: Model, device: torch.device) -> Iterator[None]:
    """Eval mode and fp32; the random state and every .grad, which FAB adds to, come back."""
    parameters = [p for module in modules_behind(model) for p in module.parameters()]
    kept = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    precise = resolve("fp32", device.type)
    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(cuda), attack_mode(model):
            with arithmetic(precise, model, device.type):
                yield
    finally:
        for p, grad in zip(parameters, kept, strict=True):
            p.grad = grad


def official_attack(
    model: Model, norm: str, eps: float, seed: float | None, device: torch.device,
    version: str = "standard", attacks: Sequence[str] = (),
) -> Any:  # fmt: skip
    """The installed official AutoAttack; `attacks` go with version="custom".

    Raises:
        ImportError: neither package is installed.
    """
    package = installed()
    if package is None:
        raise ImportError(
            "the referee needs the official code: pip install pyautoattack, or "
            "git+https://github.com/fra31/auto-attack."
        )
    make = importlib.import_module(package).AutoAttack
    common: dict[str, Any] = {"norm": norm, "eps": eps, "seed": seed, "version": version}
    if package == "pyautoattack":
        made = make(model, attacks=list(attacks) or None, device=device, **common)
    else:
        made = make(model, attacks_to_run=list(attacks), device=device, **common)
    made.verbose = False
    return made


def official_images(official: Any, model: Model, x: Tensor, y: Tensor, bs: int = 250) -> Any:
    """(x_adv, bool [N]: still robust) of an `official_attack`, leaving no trace in the model."""
    package = type(official).__module__.partition(".")[0]
    with _untouched(model, x.device):
        if package == "pyautoattack":
            x_adv, y_adv = official.run_standard_evaluation(x, y, batch_size=bs)
        else:
            x_adv, y_adv = official.run_standard_evaluation(x, y, bs=bs, return_labels=True)
    return x_adv, y_adv == y


@dataclass
class Agreement:
    """The official verdicts beside ours.

    Attributes:
        package: whose verdicts. official, ours: bool [n], still robust.
    """

    package: str
    official: Tensor
    ours: Tensor

    @property
    def differing(self) -> list[int]:
        """The samples on which the two differ."""
        return (self.official != self.ours).nonzero()[:, 0].tolist()

    def __str__(self) -> str:
        n, differing = len(self.ours), self.differing
        names = f": {', '.join(map(str, differing))}" if differing else ""
        return (
            f"{self.package} on {n} samples: {int(self.official.sum())} robust, here "
            f"{int(self.ours.sum())}; {len(differing)} verdicts differ{names}"
        )


def agreement(
    attack: AutoAttack, x: Tensor, y: Tensor, n: int | None = None, bs: int = 250
) -> Agreement:
    """Reruns the first n samples of an evaluation with the official code.

    Args:
        attack: after its `run_standard_evaluation` on x and y; its settings are the official
            run's.
        n: all where not given.
        bs: the batch size; with compat="official" results depend on it.

    Raises:
        ImportError: no official package is installed.
        ValueError: nothing was evaluated, n does not fit, or the suite was reduced.
    """
    report = attack.report
    if report is None or len(report.robust) != len(x):
        raise ValueError(f"attack must have evaluated the {len(x)} samples of x, but has not.")
    if report.reductions:
        raise ValueError(
            "the official code runs no reduced suite: " + "; ".join(report.reductions) + "."
        )
    n = len(x) if n is None else n
    if not 1 <= n <= len(x):
        raise ValueError(f"n must lie between 1 and {len(x)}, but is {n}.")
    device = attack.device_of(x)
    seed = report.seed
    official = official_attack(
        attack.model, attack.norm, attack.epsilon, seed, device, "custom", attack.attacks_to_run
    )
    for name, settings in _SETTINGS.items():
        for key in settings:
            setattr(getattr(official, name), key, getattr(getattr(attack, name), key))
    images, labels = x[:n].detach().float().to(device), y[:n].to(device, torch.int64)
    _, robust = official_images(official, attack.model, images, labels, bs)
    package = type(official).__module__.partition(".")[0]
    return Agreement(package, robust.cpu(), report.robust[:n].clone())
