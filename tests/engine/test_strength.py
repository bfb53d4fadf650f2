"""The engine's attacks are as strong as eager autograd's on public robust networks and real images,
in fp32 and in bf16, judged by the fp32 module."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import fastard
from fastard import models

FILES = {
    "resnet4b": ("cifar10_resnet4b_robust_2over255.pth", 2 / 255),
    "cnn_a": ("cifar10_cnn_a_robust_4over255.pth", 4 / 255),
}
COUNT = 1000


@pytest.fixture(scope="module")
def images(data_root):
    """The first 1,000 test images of CIFAR-10 and their labels."""
    spec = importlib.util.spec_from_file_location(
        "unpack_cifar", Path(data_root) / "unpack_cifar.py"
    )
    unpack_cifar = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack_cifar)
    x, labels = unpack_cifar.load([Path(data_root) / "cifar10" / "test_batch.zip"])
    x = torch.from_numpy(x[:COUNT]).permute(0, 3, 1, 2).float() / 255
    return x.contiguous(), torch.from_numpy(labels["labels"][:COUNT]).long()


@pytest.fixture(scope="module", params=FILES)
def teacher(request, data_root):
    file, eps = FILES[request.param]
    model, _ = models.load_checkpoint(Path(data_root) / "teachers" / file, name=request.param)
    return model.eval(), eps


def attacked(model, images, eps, loss, **options):
    """x' of PGD-20, its loss, and how many images the fp32 module still gets right."""
    x, y = images
    torch.manual_seed(0)
    x_adv, info = fastard.pgd(model, x, y, eps, eps / 4, 20, loss=loss, return_info=True, **options)
    with torch.no_grad():
        right = model(x_adv).argmax(1) == y
    return x_adv, info.loss, int(right.sum())


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_bf16_leaves_no_more_images_robust(teacher, images, loss):
    model, eps = teacher
    _, _, full = attacked(model, images, eps, loss, precision="fp32")
    _, _, half = attacked(model, images, eps, loss, precision="bf16")
    assert 0.2 * COUNT <= full <= 0.7 * COUNT
    assert half - full <= 2, f"robust under fp32's attack {full}, under bf16's {half}"


def test_fp32_reaches_the_loss_of_eager_autograd(teacher, images):
    model, eps = teacher
    own, loss, right = attacked(model, images, eps, "ce", precision="fp32")
    eager, reached, wanted = attacked(model, images, eps, "ce", precision="fp32", engine=False)
    assert loss.mean() >= 0.995 * reached.mean() and abs(right - wanted) <= 1
    assert (own != eager).float().mean() <= 0.01


def test_one_step_has_the_signs_of_eager_autograd(teacher, images):
    model, eps = teacher
    x, y = images
    start = (x + eps * (2 * torch.rand(x.shape) - 1)).clamp(0, 1)
    own, eager = (
        fastard.pgd(model, start, y, eps, eps / 4, 1, random_start=False, engine=engine)
        for engine in (True, False)
    )
    assert (own != eager).float().mean() <= 1e-4
