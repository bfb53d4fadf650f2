"""Public checkpoints reach the accuracy that their authors report."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from fastard import models

DATA = os.environ.get("FASTARD_DATA")
pytestmark = pytest.mark.skipif(DATA is None, reason="FASTARD_DATA does not name the data folder")

FILES = {
    "resnet56": "cifar10_resnet56_natural.th",
    "resnet4b": "cifar10_resnet4b_robust_2over255.pth",
    "cnn_a": "cifar10_cnn_a_robust_4over255.pth",
}


@pytest.fixture(scope="module")
def cifar10_test() -> tuple[torch.Tensor, torch.Tensor]:
    """The first 1,000 test images, float32 in [0, 1], and their labels."""
    spec = importlib.util.spec_from_file_location("unpack_cifar", Path(DATA) / "unpack_cifar.py")
    unpack_cifar = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack_cifar)
    x, labels = unpack_cifar.load([Path(DATA) / "cifar10" / "test_batch.zip"])
    x = torch.from_numpy(x[:1000]).permute(0, 3, 1, 2).float() / 255
    return x, torch.from_numpy(labels["labels"][:1000]).long()


@pytest.mark.parametrize(
    ("name", "published", "mean"),
    [
        ("resnet56", 93.39, (0.485, 0.456, 0.406)),
        ("resnet4b", 77.20, (0.4914, 0.4822, 0.4465)),
        ("cnn_a", 60.07, (0.4914, 0.4822, 0.4465)),
    ],
)
def test_clean_accuracy(
    cifar10_test: tuple[torch.Tensor, torch.Tensor],
    name: str,
    published: float,
    mean: tuple[float, ...],
) -> None:
    x, y = cifar10_test
    model, meta = models.load_checkpoint(Path(DATA) / "teachers" / FILES[name], name=name)
    assert isinstance(model, models.Normalized)
    assert not model.training
    assert meta["mean"] == list(mean)
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x.split(250)]) == y
    # One standard error of 1,000 images is 0.8 to 1.5 points.
    assert abs(100 * right.float().mean().item() - published) < 3


def test_numbers_beside_the_weights_are_kept() -> None:
    _, meta = models.load_checkpoint(Path(DATA) / "teachers" / FILES["resnet4b"], name="resnet4b")
    assert meta["extra"]["test_acc"] == pytest.approx(0.7720)


def test_a_public_checkpoint_is_not_another_architecture() -> None:
    path = Path(DATA) / "teachers" / FILES["resnet56"]
    message = "not a resnet18 .* lacks 'layer2.0.shortcut.0.weight'.* has 'layer1.2.conv1.weight'"
    with pytest.raises(ValueError, match=message):
        models.load_checkpoint(path, name="resnet18")
