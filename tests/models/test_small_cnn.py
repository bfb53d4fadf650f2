"""small_cnn is enough for adversarial training on the bundled digits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastard import data, models


def fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    start = (x + (torch.rand_like(x) * 2 - 1) * eps).requires_grad_()
    model.eval()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(start), y), start)
    model.train()
    moved = (start.detach() + 1.25 * eps * grad.sign()).clamp(x - eps, x + eps)
    return moved.clamp(0, 1)


def test_it_learns_the_digits_under_attack() -> None:
    torch.manual_seed(0)
    splits = data.load("digits")
    model = models.build("small_cnn-16", image_size=splits.image_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(8):
        for batch in splits.train.batches(64, shuffle=True):
            loss = F.cross_entropy(model(fgsm(model, batch.x, batch.y, 0.15)), batch.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    x, y = splits.test.float(), splits.test.y
    attacked = fgsm(model, x, y, 0.15)
    model.eval()
    with torch.no_grad():
        assert (model(x).argmax(1) == y).float().mean() >= 0.95
        assert (model(attacked).argmax(1) == y).float().mean() >= 0.70
