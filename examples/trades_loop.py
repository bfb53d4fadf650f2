"""TRADES' training script for MNIST (github.com/yaodongyu/TRADES) with one import changed.

The loop, its schedule and its evaluation are the script's, in our words. Without arguments it
trains on scikit-learn's digits, MNIST's kin of 8 by 8 pixels:

    python examples/trades_loop.py
    python examples/trades_loop.py --mnist data --epochs 100 --num-steps 40 --epsilon 0.3
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import fastard
from fastard import data, models
from fastard.compat.trades import trades_loss  # was: from trades import trades_loss

device = "cuda" if torch.cuda.is_available() else "cpu"


def train(
    args: argparse.Namespace, model: nn.Module, splits: data.Splits,
    optimizer: torch.optim.Optimizer, epoch: int,
) -> None:  # fmt: skip
    model.train()
    for number, batch in enumerate(splits.train.batches(args.batch_size, shuffle=True)):
        optimizer.zero_grad()
        loss = trades_loss(
            model=model, x_natural=batch.x, y=batch.y, optimizer=optimizer,
            step_size=args.step_size, epsilon=args.epsilon, perturb_steps=args.num_steps,
            beta=args.beta,
        )  # fmt: skip
        loss.backward()
        optimizer.step()
        if number % args.log_interval == 0:
            print(f"epoch {epoch}, batch {number}: loss {loss.item():.4f}")


def evaluate(args: argparse.Namespace, model: nn.Module, splits: data.Splits) -> None:
    model.eval()
    loss, clean, robust = 0.0, 0, 0
    for batch in splits.test.batches(args.batch_size):
        with torch.no_grad():
            logits = model(batch.x)
        loss += F.cross_entropy(logits, batch.y, reduction="sum").item()
        clean += int((logits.argmax(1) == batch.y).sum())
        x_adv = fastard.pgd_ce(model, batch.x, batch.y, args.epsilon, args.step_size, steps=20)
        with torch.no_grad():
            robust += int((model(x_adv).argmax(1) == batch.y).sum())
    n = len(splits.test)
    print(f"test: loss {loss / n:.4f}, clean {clean / n:.1%}, PGD-20 {robust / n:.1%}")


def adjust_learning_rate(args: argparse.Namespace, optimizer, epoch: int) -> None:
    """A tenth from 55 % of the epochs on, a hundredth from 75 %, a thousandth from 90 %."""
    share = epoch / args.epochs
    factor = 1.0 if share < 0.55 else 0.1 if share < 0.75 else 0.01 if share < 0.9 else 0.001
    for group in optimizer.param_groups:
        group["lr"] = args.lr * factor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", metavar="FOLDER", help="train on MNIST; digits without it")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--epsilon", type=float, default=0.15)
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--step-size", type=float, help="epsilon / 4 when left out")
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log-interval", type=int, default=10)
    args = parser.parse_args()
    args.step_size = args.epsilon / 4 if args.step_size is None else args.step_size

    torch.manual_seed(args.seed)
    splits = data.load("mnist" if args.mnist else "digits", args.mnist, device=device)
    model = models.build("small_cnn-16", image_size=splits.image_size).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum)
    for epoch in range(1, args.epochs + 1):
        adjust_learning_rate(args, optimizer, epoch - 1)
        train(args, model, splits, optimizer, epoch)
        evaluate(args, model, splits)


if __name__ == "__main__":
    main()
