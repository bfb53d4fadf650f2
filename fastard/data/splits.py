"""Datasets by name, divided into training, validation and test images."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from fastard.data.images import Images
from fastard.data.sources import DIGITS_TEST, find, read_digits, read_torchvision

# Never a user's seed: the test images of the digits are the same in every run and publication.
DIGITS_SEED = 0


@dataclass(frozen=True, eq=False)
class Splits:
    """A dataset in three parts, `val` being None where nothing was held out of training."""

    train: Images
    val: Images | None
    test: Images
    num_classes: int
    in_channels: int
    image_size: int
    name: str


def load(
    name: str = "digits",
    root: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    device: str | torch.device = "cpu",
    val: int = 0,
    seed: int = 0,
) -> Splits:
    """Load a dataset onto `device` as uint8.

    `name` is "digits" (bundled with scikit-learn, no `root`; its 500 stratified test images are the
    same in every call), or "cifar10", "cifar100" or "mnist" from torchvision's folders under
    `root`, fetched only with `download=True`. `val` images, drawn by `seed` from the training set
    with each class in proportion, are held out as `Splits.val`; the test set is never touched.
    Every part keeps the dataset's order. Training batches of CIFAR are cropped and flipped by
    default.

    Raises:
        ValueError: `name` is unknown, `root` is missing, a file is damaged, or `val` is negative or
            not below the number of training images.
        FileNotFoundError: the dataset is not under `root`; the sentence says how to get it.
    """
    source = find(name)
    if name == "digits":
        all_digits = read_digits()
        test_index, train_index = stratified(all_digits.y, DIGITS_TEST, DIGITS_SEED)
        x, y = all_digits.x[train_index], all_digits.y[train_index]
        x_test, y_test = all_digits.x[test_index], all_digits.y[test_index]
    else:
        (x, y), (x_test, y_test) = read_torchvision(name, root, download=download)
    if not 0 <= val < len(y):
        raise ValueError(f"val is {val} but must be from 0 to {len(y) - 1}, for {name}")
    train, held_out = Images(x, y, source.augment), None
    if val:
        val_index, train_index = stratified(y, val, seed)
        held_out = train.select(val_index, augment="none").to(device)
        train = train.select(train_index)
    return Splits(
        train=train.to(device),
        val=held_out,
        test=Images(x_test, y_test).to(device),
        num_classes=source.num_classes,
        in_channels=x.shape[1],
        image_size=x.shape[2],
        name=name,
    )


def stratified(y: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pick `count` positions of `y` at random, each class in proportion.

    Returns (picked, rest), both sorted. Classes get the whole part of their share, and those with
    the largest fractions one more until `count` is reached.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.bincount(y)
    # Integers throughout: in floating point a fraction that is a tie could fall either way.
    quota, fraction = sizes * count // len(y), sizes * count % len(y)
    extra = torch.argsort(fraction, descending=True, stable=True)[: count - int(quota.sum())]
    quota[extra] += 1
    picked = torch.zeros(len(y), dtype=torch.bool)
    for label, number in enumerate(quota.tolist()):
        members = torch.nonzero(y == label).flatten()
        order = torch.randperm(len(members), generator=generator)
        picked[members[order[:number]]] = True
    return torch.nonzero(picked).flatten(), torch.nonzero(~picked).flatten()
