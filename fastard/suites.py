"""Suites of evaluation attacks and the verdict on each sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from fastard import api
from fastard.data import ImageSet
from fastard.engine import attack_mode
from fastard.engine.precision import arithmetic, resolve

REFERENCE_EPS = 8 / 255


@dataclass(frozen=True)
class Attack:
    """A PGD variant; `alpha` is the step size at eps = 8/255 and follows eps in proportion.

    `step` is how the title writes alpha, where it does.
    """

    key: str
    name: str
    steps: int
    alpha: float
    loss: str = "ce"
    kappa: float = 0.0
    random_start: bool | str = "uniform"
    step: str | None = None

    @property
    def title(self) -> str:
        """The name, and the step size that tells it from attacks of the same name."""
        return self.name if self.step is None else f"{self.name} ({self.step})"

    def at(self, eps: float) -> Attack:
        """The attack with the step size that belongs to this eps."""
        alpha = self.alpha * (eps / REFERENCE_EPS)
        if self.step is None or math.isclose(eps, REFERENCE_EPS):
            return replace(self, alpha=alpha)
        return replace(self, alpha=alpha, step=f"{alpha:.4g}")

    def describe(self) -> str:
        start = f"{self.random_start} start" if self.random_start else "no random start"
        return f"{self.title}: {self.steps} x {self.alpha:.5g}, {start}"


SUITES = {
    "basic": (
        Attack("fgsm", "FGSM", 1, REFERENCE_EPS, random_start=False),
        Attack("pgd_sat", "PGD-20", 20, 2 / 255, step="2/255"),
        Attack("pgd_trades", "PGD-20", 20, 0.003, step="0.003"),
        Attack("cw_inf", "CW∞", 30, 2 / 255, loss="margin", kappa=50.0),
    )
}


@dataclass(frozen=True)
class Verdicts:
    """What became of each sample: `survived` (bool [N]), and where the logits were NaN or +inf."""

    survived: torch.Tensor
    broken_logits: torch.Tensor

    @property
    def accuracy(self) -> float:
        return int(self.survived.sum()) / len(self.survived)


def judge(
    model: nn.Module,
    images: ImageSet,
    attack: Attack | None = None,
    *,
    eps: float = REFERENCE_EPS,
    norm: str = "Linf",
    batch_size: int = 256,
    seed: int = 0,
    precision: str | None = "fp32",
    skip: torch.Tensor | None = None,
    on_batch: Callable[[int, int], None] = lambda samples, survivors: None,
) -> Verdicts:
    """Attacks every image (or none, without an attack) and asks the model itself for the verdict.

    A sample survives when the argmax of the model's own fp32 logits in eval mode, at the attack's
    last iterate, is its label. NaN and +inf logits never survive. The noise is drawn on the CPU
    from `seed`, whatever the device.

    Args:
        attack: applied as it is; use `Attack.at(eps)` for its step size.
        precision: of the search for adversarial images; the verdict is always fp32.
        skip: bool [N], samples that are not attacked because their clean logits are broken.
        on_batch: called with the number of samples and survivors so far.
    """
    noise = torch.Generator().manual_seed(seed)
    survived, broken = [], []
    device = images.device.type
    with arithmetic(resolve("fp32", device), model, device), attack_mode(model):
        for start in range(0, len(images), batch_size):
            rows = torch.arange(start, min(start + batch_size, len(images)), device=images.device)
            x, y = images.float(rows), images.y[rows]
            if attack is not None:
                chosen = rows.new_ones(len(rows), dtype=torch.bool) if skip is None else ~skip[rows]
                x[chosen] = _search(
                    model, x[chosen], y[chosen], attack, eps, norm, precision, noise
                )
            with torch.no_grad():
                logits = model(x)
            _require_logits(logits, len(rows))
            unusable = (logits.isnan() | logits.isposinf()).any(1)
            broken.append(unusable)
            survived.append((logits.argmax(1) == y) & ~unusable)
            on_batch(int(rows[-1]) + 1, int(sum(part.sum() for part in survived)))
    return Verdicts(torch.cat(survived), torch.cat(broken))


def _require_logits(logits: object, samples: int) -> None:
    if not isinstance(logits, torch.Tensor):
        raise TypeError(
            f"the model must return a tensor of logits, but returned a {type(logits).__name__}."
        )
    if logits.dim() != 2 or len(logits) != samples:
        raise ValueError(
            f"the model must return logits [{samples}, classes] for {samples} images, but returned "
            f"{list(logits.shape)}."
        )


def _search(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    attack: Attack,
    eps: float,
    norm: str,
    precision: str | None,
    noise: torch.Generator,
) -> torch.Tensor:
    return api.pgd(
        model,
        x,
        y,
        eps,
        attack.alpha,
        attack.steps,
        loss=attack.loss,
        kappa=attack.kappa,
        norm=norm,
        random_start=attack.random_start,
        clip_start=True,
        precision=precision,
        noise_device="cpu",
        generator=noise,
        # Evaluation counts unusable logits as broken instead.
        check_logits=False,
    )
