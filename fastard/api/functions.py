"""The attacks as functions: drop-ins for the inner loops of published training code."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from fastard.api.attack import Bound
from fastard.api.options import CommonOptions, KLOptions, PGDOptions, require_known
from fastard.api.pair import PairPGD
from fastard.api.pgd import PGD, Loss
from fastard.engine import Inference
from fastard.engine.unwrap import Model

_OWN = {"eps", "alpha", "steps"}


def pgd(
    model: Model,
    x: Tensor,
    target: Tensor,
    eps: Bound = 8 / 255,
    alpha: Bound = 2 / 255,
    steps: int = 10,
    *,
    loss: Loss = "ce",
    labels: Tensor | None = None,
    **options: Unpack[PGDOptions],
) -> Any:
    """PGD that maximises any loss: x_adv near x.

    Equivalent to (Linf, loss "ce"), after a uniform start, `steps` times:
    ``grad, = torch.autograd.grad(F.cross_entropy(model(x_adv), target), x_adv);
    x_adv = (x_adv + alpha * grad.sign()).clamp(x - eps, x + eps).clamp(0, 1)``

    Args:
        x: [B, C, H, W] in [clip_min, clip_max].
        target: labels [B] (ce, margin, dlr), logits [B, classes] (kl, mixture), or what a callable
            ``loss(logits, target)`` takes.
        labels: true classes [B] beside the target (mixture, targeted dlr).
        options: the keywords of `fastard.PGD`. random_start=True is the loss's published start:
            uniform and clipped; Gaussian 0.001, unclipped, for kl and mixture.
    Returns:
        x_adv, or (x_adv, AttackInfo) with return_info=True.
    Raises:
        TypeError, ValueError: bad input, in one sentence, before anything has changed.
    """
    require_known("pgd", options, PGDOptions.__optional_keys__ | _OWN | {"loss", "labels"})
    return PGD(model, loss, eps=eps, alpha=alpha, steps=steps, **options)(x, target, labels)


def pgd_kl(
    model: Model,
    x: Tensor,
    teacher_logits: Tensor,
    eps: Bound = 8 / 255,
    alpha: Bound = 2 / 255,
    steps: int = 10,
    **options: Unpack[KLOptions],
) -> Any:
    """The inner loop of RSLAD and TRADES: maximises KL(teacher || student(x')).

    Equivalent to: ``x_adv = x + 0.001 * torch.randn_like(x)``, then `steps` times
    ``kl = F.kl_div(model(x_adv).log_softmax(1), teacher_logits.softmax(1), reduction="sum");
    grad, = torch.autograd.grad(kl, x_adv);
    x_adv = (x_adv + alpha * grad.sign()).clamp(x - eps, x + eps).clamp(0, 1)``

    The Gaussian start is not clipped, as published. For TRADES pass the model's own eval-mode
    logits of x. With noise_device="cpu" a seeded run starts where the published loops start.

    Args:
        x: [B, C, H, W] in [clip_min, clip_max].
        teacher_logits: [B, classes], a constant; logits, not probabilities.
        options: the keywords of `fastard.PGD`.
    Returns:
        x_adv, or (x_adv, AttackInfo) with return_info=True.
    Raises:
        TypeError, ValueError: bad input, in one sentence, before anything has changed.

    Zi et al. 2021 (RSLAD), Zhang et al. 2019 (TRADES).
    """
    require_known("pgd_kl", options, KLOptions.__optional_keys__ | _OWN)
    return PGD(model, "kl", eps=eps, alpha=alpha, steps=steps, **options)(x, teacher_logits)


def pgd_ce(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: Bound = 8 / 255,
    alpha: Bound = 2 / 255,
    steps: int = 10,
    **options: Unpack[CommonOptions],
) -> Any:
    """Madry's PGD: maximises the cross-entropy from a uniform start, clipped to the box.

    Equivalent to: ``fastard.pgd(model, x, y, eps, alpha, steps, loss="ce")``

    Arguments, return and errors as `pgd`. Madry et al. 2018.
    """
    require_known("pgd_ce", options, CommonOptions.__optional_keys__ | _OWN)
    return PGD(model, "ce", eps=eps, alpha=alpha, steps=steps, **options)(x, y)


def pgd_kl_pair(
    student: Model,
    teacher: Model,
    x: Tensor,
    eps: Bound = 8 / 255,
    alpha: Bound = 2 / 255,
    steps: int = 10,
    **options: Unpack[KLOptions],
) -> Any:
    """The inner loop of AdaAD and AdvFunMatch: maximises KL(teacher(x') || student(x')).

    Equivalent to: ``x_adv = x + 0.001 * torch.randn_like(x)``, then `steps` times
    ``kl = F.kl_div(student(x_adv).log_softmax(1), teacher(x_adv).softmax(1), reduction="sum");
    grad, = torch.autograd.grad(kl, x_adv)`` and the Linf update of `pgd_kl`: the gradient flows
    through both networks, finite also where a teacher's probability underflows.

    `mean` and `std` belong to the student; the teacher takes pixels. Arguments, return and errors
    otherwise as `pgd_kl`. Huang et al. 2023 (AdaAD), Wu et al. 2023 (AdvFunMatch).
    """
    require_known("pgd_kl_pair", options, KLOptions.__optional_keys__ | _OWN)
    return PairPGD(student, teacher, eps=eps, alpha=alpha, steps=steps, **options)(x)


def clean_eval_logits(model: Model, x: Tensor, precision: str | None = None) -> Tensor:
    """The model's own logits of x in eval mode, in fp32: TRADES' target.

    Equivalent to: ``model.eval(); logits = model(x); model.train()`` under no_grad, with every
    module's own training flag put back, in the module inside DDP and its like.
    """
    return Inference(model, precision)(x)


def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: Bound = 8 / 255,
    *,
    alpha: Bound | None = None,
    loss: Loss = "ce",
    labels: Tensor | None = None,
    **options: Unpack[PGDOptions],
) -> Any:
    """One signed gradient step of size eps, without a random start.

    Equivalent to: ``grad, = torch.autograd.grad(F.cross_entropy(model(x), y), x);
    x_adv = (x + eps * grad.sign()).clamp(0, 1)``

    alpha is the step size where it differs from eps (FGSM-RS: random_start="uniform", alpha
    1.25 * eps). Arguments, return and errors otherwise as `pgd`. Goodfellow et al. 2015.
    """
    known = PGDOptions.__optional_keys__ | {"eps", "alpha", "loss", "labels"}
    require_known("fgsm", options, known)
    options.setdefault("random_start", False)
    step = eps if alpha is None else alpha
    return PGD(model, loss, eps=eps, alpha=step, steps=1, **options)(x, y, labels)
