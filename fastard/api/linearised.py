"""A network's logits near an image, from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastard import checks
from fastard.engine import Program
from fastard.engine.unwrap import Model


def linearised(
    model: Model, x: Tensor, y: Tensor, slope: float = 1.0, precision: str | None = None
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A stand-in for a model near x: the label's logit is linear, the others are constant.

    Equivalent to: ``z = model(x); g, = torch.autograd.grad(z.gather(1, y[:, None]).sum(), x)``;
    the stand-in answers with z to which, at y, ``slope * (g * (x_adv - x)).flatten(1).sum(1)`` is
    added. It has a gradient in x_adv, and one multiplication a pixel is all that it costs.

    Args:
        x: [B, C, H, W] images; y: [B] labels.
        slope: the paper's lambda, on the linear part.
        precision: as `fastard.engine.Program`.

    Returns: the stand-in, and the model's own logits of x, [B, classes].
    Source: Lee and Chung 2026 (SAAD).
    """
    program = Program(model, precision)
    x = x.detach()
    with program.running(x):
        logits = program.forward(x)
        if y.is_cpu:
            checks.labels_below(y, logits.shape[1])
        label = torch.zeros_like(logits).scatter_(1, y[:, None], 1.0)
        gradient = program.pixel_vjp(label)

    def stand_in(x_adv: Tensor) -> Tensor:
        shift = (gradient * (x_adv - x)).flatten(1).sum(1, keepdim=True)
        return logits + slope * label * shift

    return stand_in, logits
