"""Names of AdaAD's AT_helper.py (Huang et al. 2023, github.com/boyellow/AdaAD)."""

from __future__ import annotations

from torch import Tensor, nn

from fastard.api import pgd_ce, pgd_kl_pair
from fastard.compat.shared import as_it_is, check_settings
from fastard.kinds import unknown

__all__ = ["Madry_PGD", "adaad_inner_loss"]


def adaad_inner_loss(
    model: nn.Module,
    teacher_model: nn.Module,
    x_natural: Tensor,
    step_size: float = 2 / 255,
    steps: int = 10,
    epsilon: float = 8 / 255,
    BN_eval: bool = True,
    random_init: bool = True,
    clip_min: float = 0.0,
    clip_max: float = 1.0,
    *,
    engine: bool = True,
    precision: str | None = None,
) -> Tensor:
    """AdaAD's adversarial images: the gradient of KL(teacher || student) through both networks.

    Equivalent to: ``fastard.pgd_kl_pair(model, teacher_model, x_natural, epsilon, step_size, steps,
    noise_device="cpu"); model.train(); teacher_model.eval()``

    With BN_eval=False the model is attacked in its current mode. The start is 0.001 * N(0, 1),
    drawn on the CPU, unclipped; x itself with random_init=False. Whatever the modes were, the model
    is left in train and the teacher in eval mode.
    Returns: the adversarial images, detached (not a loss).
    Raises TypeError or ValueError for bad input, in one sentence.
    """
    check_settings(step_size=step_size, steps=steps, epsilon=epsilon)
    student = model if BN_eval else as_it_is(model)
    x_adv = pgd_kl_pair(
        student, teacher_model, x_natural, epsilon, step_size, steps, noise_device="cpu",
        random_start="gaussian" if random_init else False, clip_start=False, clip_min=clip_min,
        clip_max=clip_max, engine=engine, precision=precision)  # fmt: skip
    teacher_model.eval()
    model.train()
    return x_adv


def Madry_PGD(
    model: nn.Module,
    x_ori: Tensor,
    y: Tensor,
    step_size: float = 2 / 255,
    steps: int = 10,
    epsilon: float = 8 / 255,
    norm: str = "L_inf",
    BN_eval: bool = True,
    random_init: bool = True,
    clip_min: float = 0.0,
    clip_max: float = 1.0,
    *,
    engine: bool = True,
    precision: str | None = None,
) -> Tensor:
    """PGD on the cross-entropy from x + 0.001 * N(0, 1), drawn on the CPU and clipped.

    Equivalent to: ``fastard.pgd_ce(model, x_ori, y, epsilon, step_size, steps,
    random_start="gaussian", clip_start=True, noise_device="cpu")``, then model.train() if BN_eval.

    With BN_eval=False the model is attacked, and left, in its current mode; x itself is the start
    with random_init=False.
    Returns: the adversarial images, detached.
    Raises TypeError or ValueError for bad input, in one sentence.
    """
    if norm != "L_inf":
        raise unknown("norm", norm, ("L_inf",))
    check_settings(step_size=step_size, steps=steps, epsilon=epsilon)
    x_adv = pgd_ce(
        model if BN_eval else as_it_is(model), x_ori, y, epsilon, step_size, steps,
        random_start="gaussian" if random_init else False, clip_start=True, clip_min=clip_min,
        clip_max=clip_max, noise_device="cpu", engine=engine, precision=precision)  # fmt: skip
    if BN_eval:
        model.train()
    return x_adv
