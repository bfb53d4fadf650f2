"""Datasets by name, divided into training, validation and test images."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fastard.data.batches import ImageSet, TrainingSet
from fastard.data.folders import read_imagenet, read_tiny_imagenet
from fastard.data.images import Images
from fastard.data.mixed import ORIGINAL_SHARE, mix
from fastard.data.sources import (
    DIGITS_TEST,
    find,
    read_digits,
    read_mnist,
    read_torchvision,
    require_root,
)
from fastard.data.streamed import Streamed

# Never a user's seed: the test images of the digits are the same in every run and publication.
DIGITS_SEED = 0
IMAGENET_SIZE = 224


@dataclass(frozen=True, eq=False)
class Splits:
    """A dataset in three parts, `val` being None where nothing was held out of training."""

    train: TrainingSet
    val: ImageSet | None
    test: ImageSet
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
    extra: str | os.PathLike[str] | None = None,
    original_share: float = ORIGINAL_SHARE,
    image_size: int | None = None,
    workers: int = 4,
    streamed: bool = False,
) -> Splits:
    """Load a dataset, kept on `device` as uint8 where it is small.

    `name` is "digits" (bundled with scikit-learn, no `root`; its 500 stratified test images are the
    same in every call), "cifar10", "cifar100" or "svhn" from torchvision's files under `root`,
    "mnist" from idx files in `root` or `root/MNIST/raw`, plain or packed as .gz or .xz,
    "tiny-imagenet" from `root/tiny-imagenet-200`, or "imagenet" from `root/train/<class>/*` and
    `root/val/<class>/*`, with any classes. Only torchvision's are fetched, with `download=True`.

    ImageNet stays in its files, which `workers` processes decode at `image_size` (224) pixels;
    Tiny-ImageNet is decoded by them once and kept (1.3 GiB), or stays there too with
    `streamed=True`. The labelled validation images of both serve as `Splits.test`.

    `val` images, drawn by `seed` from the training set with each class in proportion, are held out
    as `Splits.val`; the test set is never touched. Every part keeps the dataset's order. Training
    batches are cropped and flipped by default, SVHN's cropped only, ImageNet's resized crops.
    `extra` is an .npz file of synthetic images that fill each training batch up beside a share
    `original_share` of original ones (`fastard.data.Mixed`).

    Raises:
        ValueError: `name` is unknown, `root` is missing, a file is damaged (the sentence names it),
            `val` is negative or not below the number of training images, or an argument is given
            that this dataset has no use for.
        FileNotFoundError: the dataset is not under `root`; the sentence says how to get it.
    """
    find(name)
    if image_size is not None and (name != "imagenet" or image_size < 1):
        wanted = "at least 1" if name == "imagenet" else f"left out: {name} has a size of its own"
        raise ValueError(f"image_size is {image_size} but must be {wanted}")
    if workers < 0:
        raise ValueError(f"workers is {workers} but must be >= 0")
    if streamed and name not in ("tiny-imagenet", "imagenet"):
        raise ValueError(f"streamed is True but must be False for {name}, which fits in memory")
    if extra is not None and (name == "imagenet" or streamed):
        raise ValueError(
            "extra is given but must be left out where images are streamed from files: synthetic "
            "images are mixed with those in memory"
        )
    train, test, num_classes = _read(
        name, root, download, image_size or IMAGENET_SIZE, workers, streamed
    )
    if not 0 <= val < len(train):
        raise ValueError(f"val is {val} but must be from 0 to {len(train) - 1}, for {name}")
    held_out = None
    if val:
        val_index, train_index = stratified(train.y.cpu(), val, seed)
        held_out = train.select(val_index, augment="none").to(device)
        train = train.select(train_index)
    train, test = train.to(device), test.to(device)
    in_channels, size = _shape(train)
    mixed: TrainingSet = train
    if extra is not None and isinstance(train, Images):
        mixed = mix(train, extra, num_classes, original_share)
    return Splits(
        train=mixed,
        val=held_out,
        test=test,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=size,
        name=name,
    )


def _read(
    name: str,
    root: str | os.PathLike[str] | None,
    download: bool,
    image_size: int,
    workers: int,
    streamed: bool,
) -> tuple[Images | Streamed, Images | Streamed, int]:
    """Training set, test set and number of classes, on the CPU."""
    source = find(name)
    if name == "digits":
        x, y = read_digits()
        test_index, train_index = stratified(y, DIGITS_TEST, DIGITS_SEED)
        everything = Images(x, y, source.augment)
        parts = everything.select(train_index), everything.select(test_index, augment="none")
        return *parts, source.num_classes
    folder = require_root(name, root) / source.folder
    if name == "imagenet":
        return read_imagenet(folder, image_size, workers)
    if name == "tiny-imagenet":
        train, test, num_classes = read_tiny_imagenet(folder, workers)
        if streamed:
            return train, test, num_classes
        return train.decoded(), test.decoded(), num_classes
    read = read_mnist if name == "mnist" else partial(read_torchvision, name)
    train_arrays, test_arrays = read(require_root(name, root), download=download)
    return Images(*train_arrays, source.augment), Images(*test_arrays), source.num_classes


def _shape(images: Images | Streamed) -> tuple[int, int]:
    """Channels and height of the images."""
    if isinstance(images, Streamed):
        return 3, images.decoder.size
    return images.x.shape[1], images.x.shape[2]


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
