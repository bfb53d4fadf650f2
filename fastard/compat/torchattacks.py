"""Classes of torchattacks 3.5 (Kim 2020, github.com/Harry24k/adversarial-attacks-pytorch)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from fastard import api
from fastard.compat.torchattacks_base import Attack
from fastard.engine import Inference

__all__ = ["APGD", "FGSM", "PGD", "PGDL2", "TPGD"]


def __getattr__(name: str) -> Any:
    raise AttributeError(f"fastard.compat.torchattacks has {', '.join(__all__)}, but no {name!r}.")


class FGSM(Attack):
    """One signed gradient step of size eps on the cross-entropy, without a random start.

    Equivalent to: ``fastard.fgsm(model, inputs, labels, eps)``. Goodfellow et al. 2015.
    """

    supported_mode = ("default", "targeted")

    def __init__(self, model: nn.Module, eps: float = 8 / 255) -> None:
        super().__init__("FGSM", model)
        self.eps = eps

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        target = self._target(images, labels)
        return api.fgsm(self._attacked, images, target, self.eps, targeted=self.targeted,
                        **self._statistics)  # fmt: skip


class PGD(Attack):
    """PGD in Linf on the cross-entropy.

    Equivalent to: ``fastard.pgd_ce(model, inputs, labels, eps, alpha, steps)``.
    Madry et al. 2018.
    """

    supported_mode = ("default", "targeted")

    def __init__(
        self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10,
        random_start: bool = True,
    ) -> None:  # fmt: skip
        super().__init__("PGD", model)
        self.eps, self.alpha, self.steps, self.random_start = eps, alpha, steps, random_start

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        return self._pgd(images, labels)

    def _pgd(self, images: Tensor, labels: Tensor | None, norm: str = "Linf") -> Tensor:
        return api.pgd_ce(
            self._attacked, images, self._target(images, labels), self.eps, self.alpha, self.steps,
            norm=norm, random_start=self.random_start, targeted=self.targeted,
            **self._statistics)  # fmt: skip


class PGDL2(PGD):
    """PGD in L2 on the cross-entropy, from a random direction at a uniform radius.

    Equivalent to: ``fastard.pgd_ce(model, inputs, labels, eps, alpha, steps, norm="L2")``.
    The step divides by the gradient's norm + 1e-12: `eps_for_division` is only taken, and another
    value than its default warned about. Madry et al. 2018.
    """

    def __init__(
        self, model: nn.Module, eps: float = 1.0, alpha: float = 0.2, steps: int = 10,
        random_start: bool = True, eps_for_division: float = 1e-10,
    ) -> None:  # fmt: skip
        super().__init__(model, eps, alpha, steps, random_start)
        self.attack, self.eps_for_division = "PGDL2", eps_for_division
        if eps_for_division != 1e-10:
            warnings.warn(
                f"eps_for_division is {eps_for_division}, but steps divide by the norm + 1e-12.",
                stacklevel=2,
            )

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        return self._pgd(images, labels, "L2")


class TPGD(Attack):
    """PGD on the divergence from the model's own clean output; labels are not read.

    Equivalent to: ``fastard.pgd_kl(model, inputs, model_in_eval_mode(inputs), eps, alpha, steps,
    clip_start=True)``. Zhang et al. 2019 (TRADES).
    """

    def __init__(
        self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10
    ) -> None:
        super().__init__("TPGD", model)
        self.eps, self.alpha, self.steps = eps, alpha, steps

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        own = Inference(self._attacked, **self._statistics)(images)
        return api.pgd_kl(self._attacked, images, own, self.eps, self.alpha, self.steps,
                          clip_start=True, **self._statistics)  # fmt: skip


class APGD(Attack):
    """Auto-PGD in Linf or L2, with torchattacks' 10 steps (AutoAttack runs 100).

    Equivalent to: ``fastard.apgd(model, inputs, labels, norm, eps, steps, loss=loss,
    n_restarts=n_restarts, eot_iter=eot_iter, rho=rho, noise_device="cpu",
    generator=torch.Generator().manual_seed(seed))``: the noise that the seed gives, without seeding
    torch's global generator, as torchattacks does. Croce & Hein 2020.
    """

    def __init__(
        self, model: nn.Module, norm: str = "Linf", eps: float = 8 / 255, steps: int = 10,
        n_restarts: int = 1, seed: int = 0, loss: str = "ce", eot_iter: int = 1, rho: float = 0.75,
        verbose: bool = False,
    ) -> None:  # fmt: skip
        super().__init__("APGD", model)
        self.norm, self.eps, self.steps, self.n_restarts = norm, eps, steps, n_restarts
        self.seed, self.loss, self.eot_iter, self.thr_decr = seed, loss, eot_iter, rho
        self.verbose = verbose

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        options: dict[str, Any] = {
            "loss": self.loss, "n_restarts": self.n_restarts, "eot_iter": self.eot_iter,
            "rho": self.thr_decr, "generator": torch.Generator().manual_seed(self.seed),
        }  # fmt: skip
        adv, info = api.apgd(
            self._attacked, images, self._target(images, labels), self.norm, self.eps, self.steps,
            return_info=True, **options, **self._statistics)  # fmt: skip
        if self.verbose:
            print(f"APGD: robust accuracy {info.robust.float().mean():.2%}")
        return adv
