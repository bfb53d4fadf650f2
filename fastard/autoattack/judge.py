"""The verdict on an image: the module's own argmax, inside ball and box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastard.kinds import Norm
from fastard.shapes import per_sample

LINF_SLACK, RELATIVE_SLACK = 1e-6, 1e-5


@dataclass
class Verdict:
    """What a module says of a batch.

    Attributes:
        predicted: the classes, [B]; of unusable logits another than the label.
        wrong: bool [B]; another class than the label, or logits that name none.
        unusable: bool [B]; logits with NaN or +inf.
    """

    predicted: Tensor
    wrong: Tensor
    unusable: Tensor


def verdict(logits: Tensor, y: Tensor) -> Verdict:
    """The verdict on logits [B, C]; NaN and +inf are wrong whatever the label."""
    predicted = logits.argmax(1)
    unusable = (logits.isnan() | logits.isposinf()).any(1)
    # What the label is compared with later must not make such a sample right.
    finite = logits.masked_fill(~logits.isfinite(), -torch.inf).argmax(1)
    other = torch.where(finite != y, finite, (y + 1) % logits.shape[1])
    predicted = torch.where(unusable, other, predicted)
    return Verdict(predicted, (predicted != y) | unusable, unusable)


def distance(adv: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """The norm of adv - x per sample, [B], in fp64."""
    apart = (adv.double() - x.double()).flatten(1)
    order = {Norm.Linf: torch.inf, Norm.L2: 2, Norm.L1: 1}[norm]
    return torch.linalg.vector_norm(apart, order, dim=1)


def inside(adv: Tensor, x: Tensor, eps: float, norm: Norm) -> Tensor:
    """bool [B]: in the box [0, 1], and in the ball up to 1e-6 (Linf) or 1e-5 of eps (L2, L1)."""
    most = eps + LINF_SLACK if norm == Norm.Linf else eps * (1 + RELATIVE_SLACK)
    in_box = ((adv >= 0) & (adv <= 1)).flatten(1).all(1)
    return in_box & (distance(adv, x, norm) <= most)


def drawn_in(adv: Tensor, x: Tensor, eps: float, norm: Norm) -> Tensor:
    """The images moved towards x until they are in the ball, then clipped to the box."""
    apart = adv.double() - x.double()
    share = (eps / distance(adv, x, norm).clamp(min=1e-300)).clamp(max=1.0)
    moved = x.double() + apart * per_sample(share, x)
    return moved.to(x.dtype).clamp(0, 1)
