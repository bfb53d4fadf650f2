"""Adversarial training of a timm network on a folder of images, laid out as ImageNet is.

    python examples/timm_imagefolder.py FOLDER --model resnet50 --pretrained --steps 2

FOLDER holds train/<class>/* and val/<class>/*. Training is Madry's: the cross-entropy on images
that maximise it. Pretrained weights are fine-tuned.
"""

from __future__ import annotations

import argparse

import timm
import torch
import torch.nn.functional as F
from torch import nn

import fastard
from fastard import data, models

device = "cuda" if torch.cuda.is_available() else "cpu"


def network(args: argparse.Namespace, num_classes: int) -> nn.Module:
    """The network behind its own normaliser, so that images stay in [0, 1]."""
    model = timm.create_model(args.model, pretrained=args.pretrained, num_classes=num_classes)
    config = model.pretrained_cfg
    return models.Normalized(model, config["mean"], config["std"]).to(device)


def accuracy(model: nn.Module, images: data.ImageSet, attack: fastard.PGD, batch_size: int) -> str:
    model.eval()
    right = torch.zeros(2)
    for batch in images.batches(batch_size):
        for i, x in enumerate((batch.x, attack(batch.x, batch.y))):
            with torch.no_grad():
                right[i] += (model(x).argmax(1) == batch.y).sum().item()
    clean, robust = (right / len(images)).tolist()
    return f"clean {clean:.1%}, PGD-{attack.steps} {robust:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="holds train/<class>/* and val/<class>/*")
    parser.add_argument("--model", default="resnet18", help="a name that timm.list_models() has")
    parser.add_argument("--pretrained", action="store_true", help="start from timm's weights")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--eps", type=float, default=4 / 255)
    parser.add_argument("--steps", type=int, default=2, help="of the training attack")
    parser.add_argument("--workers", type=int, default=4, help="processes that decode images")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "tf32", "bf16", "fp16"])
    args = parser.parse_args()

    torch.manual_seed(0)
    splits = data.load(
        "imagenet", args.folder, device=device, image_size=args.image_size, workers=args.workers
    )
    model = network(args, splits.num_classes)
    bounds = {"eps": args.eps, "alpha": args.eps / 2}
    attack = fastard.PGD(model, "ce", steps=args.steps, precision=args.precision, **bounds)
    judge = fastard.PGD(model, "ce", steps=10, eps=args.eps, alpha=args.eps / 4, precision="fp32")
    optimizer = torch.optim.SGD(
        model.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    total = args.epochs * splits.train.num_batches(args.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)

    for epoch in range(1, args.epochs + 1):
        model.train()
        for batch in splits.train.batches(args.batch_size, shuffle=True):
            x_adv = attack(batch.x, batch.y)
            loss = F.cross_entropy(model(x_adv), batch.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch == 1:
            print(attack.program.explain(device))
        figures = accuracy(model, splits.test, judge, args.batch_size)
        print(f"epoch {epoch}: loss {loss.item():.4f}, {figures}")


if __name__ == "__main__":
    main()
