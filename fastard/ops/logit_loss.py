"""`logit_loss`: per-sample losses and their gradient in the logits, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fastard import checks, reference
from fastard.kinds import LossKind, parse_loss
from fastard.ops._backend import detached, implementation


def _class_indices(y: Tensor, logits: Tensor, name: str) -> Tensor:
    y = checks.labels(y, len(logits), logits.device, name)
    return y.to(torch.int64).contiguous()


def _fewest_classes(kind: LossKind, targeted: bool) -> int:
    if kind == LossKind.margin:
        return 2
    return (4 if targeted else 3) if kind == LossKind.dlr else 1


def logit_loss(
    logits: Tensor,
    target: Tensor,
    kind: str | LossKind = "kl",
    *,
    labels: Tensor | None = None,
    targeted: bool = False,
    temperature: float = 1.0,
    kappa: float = 0.0,
    mix: float = 0.5,
    scale: float = 1.0,
    teacher_grad: bool = False,
) -> tuple[Tensor, ...]:
    """Per-sample loss [B] and its gradient in the logits [B, C], oriented for ascent.

    Equivalent to (kind "kl"): ``loss = F.kl_div(logits.log_softmax(1), target.softmax(1),
    reduction="none").sum(1); dlogits, = torch.autograd.grad(loss.sum(), logits)``

    Kinds, with z the logits, q their softmax:
        kl: KL(p || q), p = softmax(target / temperature), q likewise; target [B, C] logits.
        ce: -log q_y; target [B] class indices.
        mixture: -sum m log q, m = (1 - mix) * onehot(labels) + mix * softmax(target / temperature).
        margin: -max(z_y - max_{k != y} z_k + kappa, 0) (Carlini & Wagner); target [B].
        dlr: -(z_y - max_{k != y} z_k) / (z_(1) - z_(3) + 1e-12) (Croce & Hein 2020); target [B].
    With `targeted`, ascent approaches `target`: kl, ce and mixture change sign, margin compares
    the other way round, and dlr is -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12) with the
    true class y in `labels` and t in `target`.

    Args:
        logits: [B, C] fp32, fp64, bf16 or fp16; computed in fp32 (fp64 for fp64).
        scale: multiplies loss and gradients.
        teacher_grad: also return the gradient in the target's logits (kl only).
    Returns:
        loss [B] in fp32 (fp64), dlogits in the logits' dtype, and dtarget if asked. Detached.
    Raises:
        TypeError, ValueError: an argument that does not fit, in one sentence; a label outside
        [0, C) on the CPU alone (on CUDA its row becomes NaN).
    """
    loss_kind = parse_loss(kind)
    checks.floating(logits, "logits")
    if logits.dim() != 2:
        raise ValueError(f"logits must be [batch, classes], but have shape {list(logits.shape)}.")
    fewest = _fewest_classes(loss_kind, targeted)
    if logits.shape[1] < fewest:
        raise ValueError(
            f"loss {loss_kind.name!r} needs at least {fewest} classes, not {logits.shape[1]}."
        )
    for value, name in ((temperature, "temperature"), (kappa, "kappa"), (mix, "mix")):
        checks.number(value, name)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, but is {temperature}.")
    if teacher_grad and loss_kind != LossKind.kl:
        raise ValueError(f"teacher_grad goes with loss 'kl', not {loss_kind.name!r}.")
    teacher = goals = None
    if loss_kind in (LossKind.kl, LossKind.mixture):
        teacher = detached(checks.floating(target, "target"))
        checks.same_shape(teacher, logits, "target", "logits")
        checks.same_device(teacher, logits, "target", "logits")
        if loss_kind == LossKind.mixture and labels is None:
            raise ValueError("loss 'mixture' needs labels=.")
        labels = None if labels is None else _class_indices(labels, logits, "labels")
    elif loss_kind == LossKind.dlr and targeted:
        if labels is None:
            raise ValueError("a targeted 'dlr' needs the true classes in labels=.")
        labels, goals = (
            _class_indices(labels, logits, "labels"),
            _class_indices(target, logits, "target"),
        )
    else:
        labels = _class_indices(target, logits, "target")

    logits = detached(logits)
    operator = implementation("logit_loss", logits)
    if operator is None:
        loss, dlogits, dtarget = reference.logit_loss(
            logits, teacher, loss_kind.name, labels, goals, targeted,
            temperature, kappa, mix, scale)  # fmt: skip
        return (loss, dlogits, dtarget) if teacher_grad else (loss, dlogits)  # type: ignore[return-value]
    logits = logits.contiguous()
    teacher = None if teacher is None else teacher.contiguous()
    accumulated = torch.float64 if logits.dtype == torch.float64 else torch.float32
    loss = logits.new_empty(logits.shape[0], dtype=accumulated)
    dlogits = torch.empty_like(logits)
    dtarget = torch.empty_like(teacher) if teacher_grad and teacher is not None else None
    try:
        operator.default(
            logits, teacher, labels, goals, int(loss_kind), targeted,
            temperature, kappa, mix, scale, loss, dlogits, dtarget)  # fmt: skip
    except RuntimeError:
        # The kernel has looked at every label already; only a refusal looks again, to name it.
        for t, name in ((labels, "labels"), (goals, "target")):
            if t is not None:
                checks.labels_below(t, logits.shape[1], name)
        raise
    return (loss, dlogits) if dtarget is None else (loss, dlogits, dtarget)
