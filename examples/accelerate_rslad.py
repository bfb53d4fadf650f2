"""RSLAD in a loop under Hugging Face Accelerate, on one process or many.

    python examples/accelerate_rslad.py
    accelerate launch --num-processes 2 examples/accelerate_rslad.py

Attacks look through the wrapper that `prepare` puts around a network: they add no communication,
and the gradients of training are averaged by the training pass alone.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset

import fastard
from fastard import data, losses, models


def loader(images: data.ImageSet, batch_size: int, shuffle: bool) -> DataLoader:
    x = images.float(torch.arange(len(images)))
    return DataLoader(TensorDataset(x, images.y), batch_size, shuffle=shuffle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", metavar="FILE", help="checkpoint; a fresh one when left out")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--eps", type=float, default=0.15)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16", "fp16"])
    parser.add_argument("--cpu", action="store_true", help="run on the CPU even where a GPU is")
    args = parser.parse_args()

    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=args.cpu)
    set_seed(0)
    splits = data.load("digits")
    train, test = (
        loader(splits.train, args.batch_size, True), loader(splits.test, args.batch_size, False)
    )  # fmt: skip
    student = models.build("small_cnn-8", image_size=8)
    optimizer = torch.optim.SGD(student.parameters(), lr=args.lr, momentum=0.9)
    student, optimizer, train, test = accelerator.prepare(student, optimizer, train, test)

    if args.teacher:
        teacher = models.load_teacher(args.teacher, in_channels=1, image_size=8)
        teacher = teacher.to(accelerator.device)
    else:
        teacher = trained_teacher(train, accelerator, args)
    answers = fastard.engine.Inference(teacher, frozen=True)

    for epoch in range(1, args.epochs + 1):
        student.train()
        for x, _ in train:
            teacher_logits = answers(x)
            with accelerator.autocast():
                x_adv = fastard.pgd_kl(
                    student, x, teacher_logits, eps=args.eps, alpha=args.eps / 4, steps=args.steps
                )
                loss = losses.rslad(student(x_adv), student(x), teacher_logits)
            # The published loss is a mean over batch and classes.
            accelerator.backward(10 * loss)
            optimizer.step()
            optimizer.zero_grad()
        clean, robust = evaluate(student, test, accelerator, args)
        accelerator.print(f"epoch {epoch}: loss {loss.item():.4f}, {clean}, {robust}")


def trained_teacher(train: DataLoader, accelerator: Accelerator, args: argparse.Namespace):
    """A small network by TRADES, in every process alike on its own share of the images."""
    teacher = models.build("small_cnn-16", image_size=8)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=args.lr, momentum=0.9)
    wrapped, optimizer = accelerator.prepare(teacher, optimizer)
    method = fastard.methods.build("trades", wrapped, eps=args.eps, alpha=args.eps / 4, steps=5)
    for _ in range(args.epochs):
        for x, y in train:
            accelerator.backward(method(x, y)[0])
            optimizer.step()
            optimizer.zero_grad()
    return accelerator.unwrap_model(wrapped).eval()


def evaluate(
    student: torch.nn.Module, test: DataLoader, accelerator: Accelerator, args: argparse.Namespace
) -> tuple[str, str]:
    student.eval()
    rows = []
    for x, y in test:
        x_adv = fastard.pgd_ce(student, x, y, eps=args.eps, alpha=args.eps / 4, steps=20)
        with torch.no_grad():
            right = torch.stack([student(images).argmax(1) == y for images in (x, x_adv)], 1)
        rows.append(accelerator.gather_for_metrics(right))
    clean, robust = torch.cat(rows).float().mean(0).tolist()
    return f"clean {clean:.1%}", f"PGD-20 {robust:.1%}"


if __name__ == "__main__":
    main()
