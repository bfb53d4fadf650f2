"""Whole training steps as the published scripts run them, with the passes they waste.

A step takes a batch of images in [0, 1] with labels, and returns its loss. What surrounds one there
(argument parsing, printing every 100 steps) is left out, to their advantage.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import published


def _kl(log_q: Tensor, p: Tensor) -> Tensor:
    """kl_loss of RSLAD's scripts, elementwise."""
    return -log_q * p + torch.log(p + 1e-5) * p


def rslad(
    student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> Tensor:
    """zibojia/RSLAD, resnet18_rslad_cifar10.py: x' first, then x; the labels are not used."""
    student.train()
    optimizer.zero_grad()
    with torch.no_grad():
        teacher_logits = teacher(x)
    x_adv = published.rslad(student, teacher_logits, x)
    optimizer.zero_grad()
    adv_logits = student(x_adv)
    student.train()
    nat_logits = student(x)
    target = F.softmax(teacher_logits.detach(), dim=1)
    adv = torch.mean(_kl(F.log_softmax(adv_logits, dim=1), target))
    nat = torch.mean(_kl(F.log_softmax(nat_logits, dim=1), target))
    loss = 5 / 6.0 * adv + 1 / 6.0 * nat
    loss.backward()
    optimizer.step()
    return loss.detach()


def adaad(
    student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor,
    weight: float = 1.0,
) -> Tensor:  # fmt: skip
    """boyellow/AdaAD with its default weight 1: the clean passes of both networks feed a term of
    weight 0, and the student's back-propagates all the same."""
    student.train()
    x_adv = published.adaad(student, teacher, x)
    student.train()
    clean_logits, adv_logits = student(x), student(x_adv)
    teacher.eval()
    with torch.no_grad():
        clean_target, adv_target = teacher(x), teacher(x_adv)
    # KLDivLoss() as torch defines it now, over all elements; a later torch divides by the batch.
    criterion = nn.KLDivLoss(reduction="none")
    adv = criterion(F.log_softmax(adv_logits, dim=1), F.softmax(adv_target.detach(), dim=1)).mean()
    nat = criterion(F.log_softmax(clean_logits, dim=1), F.softmax(clean_target.detach(), dim=1))
    nat = nat.mean()
    loss = weight * adv + (1 - weight) * nat
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def batches(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The scripts' loader over uint8 images, without end: crop and flip of each PIL image.

    Theirs runs in two processes of its own; here in this one, which an attack hardly notices.
    """
    from torchvision import transforms

    crop, flip = transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()
    change = transforms.Compose([crop, flip, transforms.ToTensor()])
    pictures = [transforms.functional.to_pil_image(image) for image in images]
    while True:
        for rows in torch.randperm(len(images)).split(size):
            if len(rows) == size:
                x = torch.stack([change(pictures[row]) for row in rows])
                yield x, labels[rows]
