"""Networks and images of the AutoAttack benchmark, and the two sides that it compares."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastard
from fastard import data, methods, models
from fastard.autoattack.referee import official_attack

from .attack import network

SEED = 0
TEACHERS = {
    "resnet4b": "cifar10_resnet4b_robust_2over255.pth",
    "cnn_a": "cifar10_cnn_a_robust_4over255.pth",
}
# L2 and L1 radii that break about as many images of the two teachers as their Linf radius.
EPS = {
    ("resnet4b", "Linf"): 2 / 255, ("cnn_a", "Linf"): 4 / 255, ("rslad", "Linf"): 4 / 255,
    ("resnet4b", "L2"): 0.25, ("resnet4b", "L1"): 4.0,
    ("resnet18", "Linf"): 2.5 / 255,
}  # fmt: skip
RSLAD_IMAGES, RSLAD_EPOCHS, RSLAD_BATCH = 2000, 6, 128


@dataclass
class Case:
    """A network in eval mode, images and labels, the radius, and at most so many targets."""

    name: str
    norm: str
    eps: float
    model: nn.Module
    x: Tensor
    y: Tensor
    targets: int = 9


def cifar10(root: str, part: str, n: int) -> tuple[Tensor, Tensor]:
    """The first n images of "train" or "test" and their labels, from torchvision's folder under
    `root`, or from packed archives with their unpacker."""
    folder = Path(root)
    if not (folder / "unpack_cifar.py").exists():
        found = getattr(data.load("cifar10", folder), part)
        return found.float(slice(0, n)), found.y[:n].long()
    spec = importlib.util.spec_from_file_location("unpack_cifar", folder / "unpack_cifar.py")
    assert spec is not None and spec.loader is not None
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    archive = {"train": "data_batch_1.zip", "test": "test_batch.zip"}[part]
    x, labels = unpack.load([folder / "cifar10" / archive])
    images = torch.from_numpy(x[:n]).permute(0, 3, 1, 2).float() / 255
    return images.contiguous(), torch.from_numpy(labels["labels"][:n]).long()


def rslad_student(root: str, kept: Path) -> nn.Module:
    """A small CNN trained by RSLAD's recipe (its loss, attack and SGD) from the teacher resnet4b.

    Few epochs on few images: it serves agreement, not accuracy. Trained once, kept in `kept`.
    """
    shape = {"in_channels": 3, "image_size": 32}
    student = models.build("small_cnn-16", **shape)
    if kept.exists():
        return models.load_checkpoint(kept)[0].eval()
    torch.manual_seed(SEED)
    teacher = load_teacher("resnet4b", root)
    x, y = cifar10(root, "train", RSLAD_IMAGES)
    method = methods.build("rslad", student, teachers=[teacher], eps=4 / 255, alpha=1 / 255)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    for _ in range(RSLAD_EPOCHS):
        for rows in torch.randperm(len(x)).split(RSLAD_BATCH):
            loss, _ = method.train()(x[rows], y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    models.save(kept, student, name="small_cnn-16", **shape)
    return student.eval()


def load_teacher(name: str, root: str) -> nn.Module:
    """A robust network of the data folder."""
    return models.load_checkpoint(Path(root) / "teachers" / TEACHERS[name], name=name)[0].eval()


def case(name: str, norm: str, n: int, root: str, scratch: Path) -> Case:
    """The first n test images under a network.

    Of resnet18 no robust weights are at hand: those of a fresh one with the statistics of a
    trained one, its mean logits taken out so that it tells images apart, and its own answers.
    """
    x, y = cifar10(root, "test", n)
    if name == "resnet18":
        model = network("resnet18").eval()
        with torch.no_grad():
            logits = model(x)
            model.linear.bias -= logits.mean(0)
            y = (logits - logits.mean(0)).argmax(1)
    elif name == "rslad":
        model = rslad_student(root, scratch / "rslad.safetensors")
    else:
        model = load_teacher(name, root)
    return Case(name, norm, EPS[name, norm], model, x, y)


def _budgeted(attack: Any, case: Case, queries: int) -> Any:
    """Queries and targets, alike for both sides."""
    attack.square.n_queries = queries
    for part in (attack.apgd_targeted, attack.fab):
        part.n_target_classes = min(part.n_target_classes, case.targets)
    return attack


def theirs(case: Case, queries: int) -> Any:
    """The official standard AutoAttack."""
    found = official_attack(case.model, case.norm, case.eps, SEED, case.x.device)
    return _budgeted(found, case, queries)


def ours(case: Case, queries: int, **options: Any) -> fastard.AutoAttack:
    """fastard's."""
    found = fastard.AutoAttack(case.model, case.norm, case.eps, SEED, verbose=False, **options)
    return _budgeted(found, case, queries)
