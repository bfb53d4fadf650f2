"""The published inner loops, re-implemented faithfully in plain PyTorch with the waste they have.

They are the rivals of the benchmarks and the oracles of the parity tests.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _linf_update(x_adv: Tensor, grad: Tensor, x: Tensor, eps: float, alpha: float) -> Tensor:
    x_adv = x_adv.detach() + alpha * torch.sign(grad.detach())
    x_adv = torch.min(torch.max(x_adv, x - eps), x + eps)
    return torch.clamp(x_adv, 0.0, 1.0)


def rslad(
    model: nn.Module, teacher_logits: Tensor, x: Tensor,
    alpha: float = 2 / 255, eps: float = 8 / 255, steps: int = 10,
) -> Tensor:  # fmt: skip
    """RSLAD's rslad_inner_loss up to its last line (zibojia/RSLAD, rslad_loss.py)."""
    criterion = nn.KLDivLoss(reduction="none")
    model.eval()
    x_adv = x.detach() + 0.001 * torch.randn(x.shape).to(x.device).detach()
    for _ in range(steps):
        x_adv.requires_grad_()
        with torch.enable_grad():
            loss = criterion(F.log_softmax(model(x_adv), dim=1), F.softmax(teacher_logits, dim=1))
            loss = torch.sum(loss)
        grad = torch.autograd.grad(loss, [x_adv])[0]
        x_adv = _linf_update(x_adv, grad, x, eps, alpha)
    model.train()
    return x_adv.detach()


def trades(
    model: nn.Module, x: Tensor, alpha: float = 0.007, eps: float = 0.031, steps: int = 10
) -> Tensor:
    """TRADES' Linf attack (yaodongyu/TRADES, trades.py): each step runs the clean pass again."""
    criterion = nn.KLDivLoss(reduction="sum")
    model.eval()
    x_adv = x.detach() + 0.001 * torch.randn(x.shape).to(x.device).detach()
    for _ in range(steps):
        x_adv.requires_grad_()
        with torch.enable_grad():
            loss = criterion(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1))
        grad = torch.autograd.grad(loss, [x_adv])[0]
        x_adv = _linf_update(x_adv, grad, x, eps, alpha)
    model.train()
    return x_adv.detach()


def adaad(
    student: nn.Module, teacher: nn.Module, x: Tensor,
    alpha: float = 2 / 255, eps: float = 8 / 255, steps: int = 10,
) -> Tensor:  # fmt: skip
    """AdaAD's adaad_inner_loss (boyellow/AdaAD, AT_helper.py): the gradient through both."""
    criterion = nn.KLDivLoss(reduction="none")
    student.eval()
    teacher.eval()
    x_adv = x.detach() + 0.001 * torch.randn(x.shape).to(x.device).detach()
    for _ in range(steps):
        x_adv.requires_grad_()
        with torch.enable_grad():
            loss = criterion(F.log_softmax(student(x_adv), dim=1), F.softmax(teacher(x_adv), dim=1))
            loss = torch.sum(loss)
        grad = torch.autograd.grad(loss, [x_adv])[0]
        x_adv = _linf_update(x_adv, grad, x, eps, alpha)
    student.train()
    return x_adv.detach()


def madry(
    model: nn.Module, x: Tensor, y: Tensor, start: Tensor,
    alpha: float = 2 / 255, eps: float = 8 / 255, steps: int = 10,
) -> Tensor:  # fmt: skip
    """PGD on the cross-entropy from a given start, as PGD-AT codes run it in eval mode."""
    model.eval()
    x_adv = start.clone()
    for _ in range(steps):
        x_adv.requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(model(x_adv), y, reduction="sum")
        grad = torch.autograd.grad(loss, [x_adv])[0]
        x_adv = _linf_update(x_adv, grad, x, eps, alpha)
    model.train()
    return x_adv.detach()


def iad(
    model: nn.Module, x: Tensor, y: Tensor,
    alpha: float = 2 / 255, eps: float = 8 / 255, steps: int = 10,
) -> Tensor:  # fmt: skip
    """IAD's and ARD's attack (ZFancy/IAD, IAD-I.py): cross-entropy from an unclipped uniform start,
    on the student in train mode, whose BN statistics every step updates."""
    model.train()
    x_adv = x.detach() + torch.zeros_like(x).uniform_(-eps, eps)
    for _ in range(steps):
        x_adv.requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(model(x_adv), y, reduction="sum")
        grad = torch.autograd.grad(loss, [x_adv])[0]
        x_adv = _linf_update(x_adv, grad, x, eps, alpha)
    return x_adv.detach()


def advertorch(
    model: nn.Module, x: Tensor, y: Tensor, eps: float = 8 / 255, alpha: float = 2 / 255,
    steps: int = 10, norm: str = "Linf",
) -> Tensor:  # fmt: skip
    """advertorch's perturb_iterative after its random start (BorealisAI/advertorch 0.2.3).

    backward() makes the weights' gradients too, and adds them up in .grad.
    """
    shape = (-1, *[1] * (x.dim() - 1))
    delta = torch.zeros_like(x).uniform_(-1, 1)
    if norm == "Linf":
        delta = eps * delta
    else:
        delta = delta / delta.flatten(1).norm(dim=1).view(shape) * eps
    delta = torch.clamp(x + delta, min=0.0, max=1.0) - x
    delta.requires_grad_()
    for _ in range(steps):
        with torch.enable_grad():
            loss = F.cross_entropy(model(x + delta), y, reduction="sum")
        loss.backward()
        assert delta.grad is not None
        if norm == "Linf":
            delta.data = delta.data + alpha * delta.grad.data.sign()
            delta.data = torch.min(torch.max(delta.data, torch.full_like(x, -eps)),
                                   torch.full_like(x, eps))  # fmt: skip
        else:
            size = delta.grad.data.flatten(1).norm(dim=1).view(shape)
            delta.data = delta.data + alpha * delta.grad.data / (size + 1e-6)
            length = delta.data.flatten(1).norm(dim=1).view(shape)
            delta.data = delta.data * torch.clamp(eps / length, max=1.0)
        delta.data = torch.clamp(x.data + delta.data, 0.0, 1.0) - x.data
        delta.grad.data.zero_()
    return torch.clamp(x + delta.data, 0.0, 1.0)


def linf_step(x_adv: Tensor, grad: Tensor, x: Tensor, eps: float, alpha: float) -> Tensor:
    """The Linf update alone, each line allocating its result as the published loops do."""
    return _linf_update(x_adv, grad, x, eps, alpha)


def l2_step(x_adv: Tensor, grad: Tensor, x: Tensor, eps: float, alpha: float) -> Tensor:
    """The L2 update of AutoAttack and torchattacks: normalise, move, project, clip."""
    shape = (-1, *[1] * (x.dim() - 1))
    grad = grad / (grad.flatten(1).norm(dim=1).view(shape) + 1e-12)
    delta = x_adv + alpha * grad - x
    norm = delta.flatten(1).norm(dim=1).view(shape)
    delta = delta / (norm + 1e-12) * torch.min(torch.full_like(norm, eps), norm)
    return torch.clamp(x + delta, 0.0, 1.0)


def l1_step(
    x_adv: Tensor, grad: Tensor, x: Tensor, eps: float, alpha: float, sparsity: float = 0.2
) -> Tensor:
    """APGD-L1's sparse update, then AutoAttack's own projection (needs pyautoattack)."""
    from pyautoattack.autopgd_base import L1_projection

    shape = (-1, *[1] * (x.dim() - 1))
    size = grad.abs().flatten(1)
    n = size.shape[1]
    kept = size.sort(dim=-1)[0][:, int(min(max((1 - sparsity) * n, 0), n - 1))]
    sparse = grad.sign() * (grad.abs() >= kept.view(shape))
    count = sparse.abs().flatten(1).sum(1).view(shape)
    delta = x_adv + alpha * sparse / (count + 1e-10) - x
    return torch.clamp(x + delta + L1_projection(x, delta, eps), 0.0, 1.0)
