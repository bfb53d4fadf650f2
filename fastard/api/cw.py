"""Carlini and Wagner's attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastard import checks
from fastard.api.attack import Bound
from fastard.api.images import checked, returned, searched
from fastard.api.options import CommonOptions, require_known
from fastard.api.pgd import PGD
from fastard.engine import Inference, Program, RowLoss
from fastard.engine.unwrap import Model
from fastard.kinds import LossKind

# Keeps arctanh finite at the box's walls, as published.
INSIDE = 0.999999


def cw_linf(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: Bound = 8 / 255,
    alpha: Bound = 2 / 255,
    steps: int = 30,
    *,
    kappa: float = 50.0,
    **options: Unpack[CommonOptions],
) -> Any:
    """CW∞ as robustness papers run it: PGD on the margin loss, from a uniform start.

    Equivalent to: ``fastard.pgd(model, x, y, eps, alpha, steps, loss="margin", kappa=kappa)``: it
    ascends ``-max(z_y - max_{k != y} z_k + kappa, 0)``.

    Arguments, return and errors otherwise as `pgd`. Carlini & Wagner 2017 (the loss); 30 steps and
    kappa 50 as RSLAD's family evaluates (Zi et al. 2021).
    """
    known = CommonOptions.__optional_keys__ | {"eps", "alpha", "steps", "kappa"}
    require_known("cw_linf", options, known)
    attack = PGD(model, "margin", eps=eps, alpha=alpha, steps=steps, kappa=kappa, **options)
    return attack(x, y)


@dataclass
class CWInfo:
    """What `cw_l2` found: `found`, [B] bool, an image that the model errs on by at least the margin
    kappa; `norm`, [B], the L2 norm of its perturbation, inf where there is none."""

    found: Tensor
    norm: Tensor


def cw_l2(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    c: float = 1e-3,
    kappa: float = 0.0,
    steps: int = 1000,
    lr: float = 0.01,
    binary_search_steps: int = 9,
    targeted: bool = False,
    clip_min: float = 0.0,
    clip_max: float = 1.0,
    precision: str | None = "fp32",
    engine: bool = True,
    return_info: bool = False,
) -> Any:
    """The L2 attack of Carlini and Wagner: a small perturbation, in no ball.

    Equivalent to: with ``x_adv = (tanh(w) + 1) / 2 * (clip_max - clip_min) + clip_min``, `steps`
    times Adam on w against ``((x_adv - x) ** 2).sum() + c * max(z_y - max_{k != y} z_k + kappa,
    0)``; the x_adv of smallest norm among those with ``(z + kappa * onehot(y)).argmax() != y``
    (targeted: ``(z - kappa * onehot(y)).argmax() == y``). From one search step to the next c
    shrinks to the middle of its bounds where an image was found, grows tenfold where not.

    Args:
        x: [B, C, H, W] in [clip_min, clip_max]. y: labels [B], with `targeted` the wanted ones.
        c: the first weight of the margin. kappa: the margin wanted (confidence), of the
            loss and of what counts as found.
        steps: Adam steps, each a forward and an input gradient. lr: Adam's.
        binary_search_steps: values of c tried.
        precision, engine: as `fastard.PGD`.
    Returns:
        x_adv, x itself where none was found, even if the model errs on it by less than kappa; or
        (x_adv, `CWInfo`) with return_info=True.
    Raises:
        TypeError, ValueError: bad input, in one sentence, before anything has changed.

    Carlini & Wagner 2017 (arXiv 1608.04644); defaults and order of advertorch's
    CarliniWagnerL2Attack, which also stops early, as this does not.
    """
    y = checked(x, y, clip_min, clip_max)
    steps = checks.steps(steps)
    searches = checks.steps(binary_search_steps, "binary_search_steps")
    for value, name in ((c, "c"), (kappa, "kappa"), (lr, "lr")):
        if not 0 <= checks.number(value, name) < float("inf"):
            raise ValueError(f"{name} must be at least 0 and finite, but is {value}.")
    images = searched(x)
    program = Program(model, precision, engine=engine)
    best = images.clone()
    norm = torch.full((len(x),), torch.inf, dtype=images.dtype, device=x.device)
    weight = torch.full_like(norm, c)
    low, high = torch.zeros_like(norm), torch.full_like(norm, torch.inf)
    if len(x):
        logits = Inference(model, precision, engine=engine)(images)
        checks.model_logits(logits)
        checks.labels_below(y, logits.shape[1], "y")
        with program.running(images):
            for _ in range(searches):
                descent = _Descent(program, images, y, weight, kappa, targeted, clip_min, clip_max)
                found = descent.run(steps, lr, best, norm)
                high = torch.where(found, torch.minimum(high, weight), high)
                low = torch.where(found, low, torch.maximum(low, weight))
                weight = torch.where(high.isfinite(), (low + high) / 2, weight * 10)
    adv = returned(best, x)
    if not return_info:
        return adv
    answer = Inference(model, "fp32", engine=False)(adv).argmax(1)
    wrong = (answer == y) if targeted else (answer != y)
    return adv, CWInfo(norm.isfinite() & wrong, norm)


class _Descent:
    """Adam over w for one weight per sample."""

    def __init__(
        self, program: Program, x: Tensor, y: Tensor, weight: Tensor, kappa: float,
        targeted: bool, low: float, high: float,
    ) -> None:  # fmt: skip
        self.program, self.x, self.y, self.weight = program, x, y, weight
        self.targeted, self.middle, self.half = targeted, (low + high) / 2, (high - low) / 2
        self.confidence = -kappa if targeted else kappa
        self.seed = RowLoss(LossKind.margin, y, targeted=targeted, kappa=kappa)

    def run(self, steps: int, lr: float, best: Tensor, norm: Tensor) -> Tensor:
        """Writes smaller adversarial images and their norms into best and norm; [B] bool: found."""
        shape = (-1, *[1] * (self.x.dim() - 1))
        start = torch.atanh(((self.x - self.middle) / self.half).clamp(-1, 1) * INSIDE)
        origin = start.tanh() * self.half + self.middle
        w = start.clone().requires_grad_()
        adam = torch.optim.Adam([w], lr=lr)
        found = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
        for _ in range(steps):
            flat = w.detach().tanh()
            x_adv = flat * self.half + self.middle
            logits = self.program.forward(x_adv)
            own = torch.nn.functional.one_hot(self.y, logits.shape[1])
            hit = (logits + self.confidence * own).argmax(1) == self.y
            hit = hit if self.targeted else ~hit
            size = (x_adv - self.x).flatten(1).norm(dim=1)
            smaller = hit & (size < norm)
            best.copy_(torch.where(smaller.view(shape), x_adv, best))
            norm.copy_(torch.where(smaller, size, norm))
            found |= hit
            # Both are descended: the margin's seed is one of ascent.
            _, dlogits = self.seed(logits)
            pull = self.program.pixel_vjp(-self.weight[:, None].to(logits.dtype) * dlogits)
            w.grad = (2 * (x_adv - origin) + pull) * (1 - flat * flat) * self.half
            adam.step()
        return found
