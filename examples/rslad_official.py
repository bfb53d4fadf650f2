"""RSLAD's training script (github.com/zibojia/RSLAD) with only its inner loop replaced.

The loop, the loss, the schedule and the evaluation are the script's, in our words; the import below
is the change. Without arguments it trains small networks on scikit-learn's digits:

    python examples/rslad_official.py
    python examples/rslad_official.py --cifar10 data --teacher model_cifar_wrn.pt --epochs 300
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastard import data, methods, models
from fastard.compat.rslad import attack_pgd, rslad_inner_loss  # was: from rslad_loss import *

device = "cuda" if torch.cuda.is_available() else "cpu"


def kl_loss(log_student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return -log_student * teacher + torch.log(teacher + 1e-5) * teacher


def robust_teacher_of_digits(loader: DataLoader, epsilon: float, epochs: int) -> nn.Module:
    """Stands for the published WRN-34-10, which was trained by TRADES as well."""
    teacher = models.build("small_cnn-16", image_size=8).to(device)
    trades = methods.build("trades", teacher, eps=epsilon, alpha=epsilon / 4, steps=5)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            trades(x.to(device), y.to(device))[0].backward()
            optimizer.step()
    return teacher


def cifar10(root: str, batch_size: int) -> tuple[DataLoader, DataLoader]:
    from torchvision import datasets, transforms

    change = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    augmented = transforms.Compose([*change, transforms.ToTensor()])
    train = datasets.CIFAR10(root, train=True, transform=augmented)
    test = datasets.CIFAR10(root, train=False, transform=transforms.ToTensor())
    return (
        DataLoader(train, batch_size, shuffle=True, num_workers=2),
        DataLoader(test, batch_size, num_workers=2),
    )


def digits(batch_size: int) -> tuple[DataLoader, DataLoader]:
    splits = data.load("digits")
    train, test = (TensorDataset(p.x.float() / 255, p.y) for p in (splits.train, splits.test))
    return DataLoader(train, batch_size, shuffle=True), DataLoader(test, batch_size)


def evaluate(
    student: nn.Module, loader: DataLoader, step_size: float, epsilon: float
) -> tuple[float, float]:
    """Clean and PGD-20 accuracy in eval mode."""
    student.eval()
    clean, robust, seen = 0, 0, 0
    for batch in loader:
        x, y = (t.to(device) for t in batch)
        x_adv = attack_pgd(student, x, y, 20, step_size, epsilon)
        with torch.no_grad():
            clean += int((student(x).argmax(1) == y).sum())
            robust += int((student(x_adv).argmax(1) == y).sum())
        seen += len(y)
    return clean / seen, robust / seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar10", metavar="FOLDER", help="train on CIFAR-10; digits without it")
    parser.add_argument("--teacher", metavar="FILE", help="the TRADES WRN-34-10, for CIFAR-10")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--out", default="", help="file for the student's best weights")
    args = parser.parse_args()
    if args.cifar10 and not args.teacher:
        parser.error("--cifar10 needs a --teacher")

    torch.manual_seed(0)
    if args.cifar10:
        epsilon, val_step = 8 / 255.0, 0.003
        train_loader, test_loader = cifar10(args.cifar10, args.batch_size)
        student = models.build("resnet18").to(device)
        teacher = models.load_teacher(f"wrn-34-10@{args.teacher}", device=device)
    else:
        epsilon, val_step = 0.15, 0.015
        train_loader, test_loader = digits(args.batch_size)
        student = models.build("small_cnn-16", image_size=8).to(device)
        teacher = robust_teacher_of_digits(train_loader, epsilon, args.epochs)
    teacher.eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    # Of 300 epochs the script lowers the rate after 215, 260 and 285, and then validates each.
    milestones = [round(args.epochs * epoch / 300) for epoch in (215, 260, 285)]
    best = 0.0

    for epoch in range(1, args.epochs + 1):
        for step, batch in enumerate(train_loader):
            x, y = (t.to(device) for t in batch)
            student.train()
            optimizer.zero_grad()
            with torch.no_grad():
                teacher_logits = teacher(x)
            adv_logits = rslad_inner_loss(
                student, teacher_logits, x, y, optimizer, step_size=epsilon / 4, epsilon=epsilon,
                perturb_steps=10,
            )  # fmt: skip
            student.train()
            nat_logits = student(x)
            target = F.softmax(teacher_logits.detach(), dim=1)
            adv = torch.mean(kl_loss(F.log_softmax(adv_logits, dim=1), target))
            nat = torch.mean(kl_loss(F.log_softmax(nat_logits, dim=1), target))
            loss = 5 / 6.0 * adv + 1 / 6.0 * nat
            loss.backward()
            optimizer.step()
            if step % 100 == 0:
                print(f"epoch {epoch}, step {step}: loss {loss.item():.4f}")
        if epoch % 20 == 0 or epoch >= milestones[0]:
            clean, robust = evaluate(student, test_loader, val_step, epsilon)
            print(f"epoch {epoch}: clean {clean:.1%}, PGD-20 {robust:.1%}")
            if args.out and robust > best:
                torch.save(student.state_dict(), args.out)
            best = max(best, robust)
        if epoch in milestones:
            for group in optimizer.param_groups:
                group["lr"] *= 0.1
    print(f"best PGD-20, selected on the test set as published: {best:.1%}")


if __name__ == "__main__":
    main()
