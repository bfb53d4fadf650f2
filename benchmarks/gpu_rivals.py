"""What the GPU benchmark times beside fastard: the plain chains, as published code writes them.

`torch.compile` gets the same function, except where the chain calls autograd: there it gets the
formula of the gradient, which is no slower.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import published


def linf_with_feed(
    x_adv: Tensor, grad: Tensor, x: Tensor, eps: float, alpha: float, mean: Tensor, std: Tensor
) -> tuple[Tensor, Tensor]:
    """The Linf update on a bf16 gradient, then the network's next input in bf16."""
    moved = published.linf_step(x_adv, grad.float(), x, eps, alpha)
    return moved, ((moved - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)).bfloat16()


def l1_step(
    x_adv: Tensor, grad: Tensor, x: Tensor, eps: float, alpha: float, sparsity: float = 0.2
) -> Tensor:
    """APGD-L1's sparse update and AutoAttack's projection by sorting.

    AutoAttack finds the threshold with a loop on the host, which no graph can hold and which only
    costs; here cumulative sums find it.
    """
    shape = (-1, *[1] * (x.dim() - 1))
    size = grad.abs().flatten(1)
    n = size.shape[1]
    least = size.sort(dim=1)[0][:, int((1 - sparsity) * n)]
    sparse = grad.sign() * (grad.abs() >= least.view(shape))
    count = sparse.abs().flatten(1).sum(1).view(shape)
    centre = x.flatten(1)
    u = (x_adv + alpha * sparse / (count + 1e-10) - x).flatten(1)
    room = torch.where(u > 0, 1 - centre, centre)
    size = u.abs()
    points, order = torch.cat([(size - room).clamp(min=0), size], 1).sort(1)
    active = torch.where(order < n, 1.0, -1.0).cumsum(1)
    fallen = (active[:, :-1] * points.diff(dim=1)).cumsum(1)
    mass = torch.minimum(size, room).sum(1, keepdim=True) - F.pad(fallen, (1, 0))
    before = ((mass > eps).sum(1, keepdim=True) - 1).clamp(min=0)
    threshold = points.gather(1, before) + (mass.gather(1, before) - eps) / active.gather(
        1, before
    ).clamp(min=1)
    threshold = torch.where(mass[:, :1] <= eps, 0.0, threshold)
    kept = torch.minimum((size - threshold).clamp(min=0), room)
    return (centre + torch.where(u < 0, -kept, kept)).clamp(0, 1).view_as(x)


def uniform_start(x: Tensor, noise: Tensor, eps: float) -> Tensor:
    """Madry's start from given uniform noise."""
    return torch.clamp(x + (noise * 2 * eps - eps), 0.0, 1.0)


def attack_kl(logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """RSLAD's inner loss and its gradient in the logits, by autograd."""
    leaf = logits.detach().requires_grad_()
    with torch.enable_grad():
        loss = F.kl_div(F.log_softmax(leaf, dim=1), F.softmax(teacher, dim=1), reduction="none")
        loss = torch.sum(loss)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def attack_kl_formula(logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    log_q, p = logits.log_softmax(1), teacher.softmax(1)
    return (p * (p.log() - log_q)).sum(), log_q.exp() - p


def outer_kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The outer loss as TRADES reduces it, with the student's gradient by autograd."""
    leaf = student.detach().requires_grad_()
    with torch.enable_grad():
        loss = F.kl_div(F.log_softmax(leaf, 1), F.softmax(teacher, 1), reduction="batchmean")
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def outer_kl_formula(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    loss, grad = attack_kl_formula(student, teacher)
    return loss / len(student), grad / len(student)
