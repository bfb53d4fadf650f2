"""Tiny-ImageNet and ImageNet: folders of image files."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fastard.data.decode import Decoder
from fastard.data.streamed import RESIZED_CROP, Streamed

TINY_SIZE = 64
# The customary share of the centre crop in the resized image: 224 of 256.
RESIZE_FACTOR = 256 / 224


def read_tiny_imagenet(folder: Path, workers: int) -> tuple[Streamed, Streamed, int]:
    """Return training set, validation set (which has labels; the test set has none) and classes.

    The layout is that of `tiny-imagenet-200.zip`: wnids.txt, train/<wnid>/images/*.JPEG,
    val/images/*.JPEG and val/val_annotations.txt. Labels follow the sorted wnids, as
    `torchvision.datasets.ImageFolder` numbers them.

    Raises:
        FileNotFoundError: a file of that layout is missing.
        ValueError: an annotation names no known class or is none.
    """
    annotations = folder / "val" / "val_annotations.txt"
    for file in (folder / "wnids.txt", annotations):
        if not file.is_file():
            raise FileNotFoundError(
                f"tiny-imagenet was not found: there is no {file.relative_to(folder)} in {folder}; "
                "unpack tiny-imagenet-200.zip of http://cs231n.stanford.edu there"
            )
    classes = sorted((folder / "wnids.txt").read_text().split())
    label = {wnid: number for number, wnid in enumerate(classes)}
    files: list[str] = []
    labels: list[int] = []
    for wnid in classes:
        found = sorted(map(str, (folder / "train" / wnid / "images").glob("*.JPEG")))
        if not found:
            raise FileNotFoundError(
                f"tiny-imagenet is incomplete: there is no training image of {wnid} in "
                f"{folder / 'train' / wnid / 'images'}"
            )
        files += found
        labels += [label[wnid]] * len(found)
    held: list[tuple[str, int]] = []
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        name, wnid, *_ = [*line.split("\t"), "", ""]
        path = folder / "val" / "images" / name
        if wnid not in label:
            raise ValueError(
                f"{annotations} is damaged: line {number} names the class {wnid!r}, "
                "which wnids.txt does not have"
            )
        if not path.is_file():
            raise FileNotFoundError(f"tiny-imagenet is incomplete: there is no file {path}")
        held.append((str(path), label[wnid]))
    decoder = Decoder(TINY_SIZE)
    train = Streamed(files, torch.tensor(labels), decoder, "crop-flip", workers)
    test_labels = torch.tensor([y for _, y in held], dtype=torch.int64)
    test = Streamed([path for path, _ in held], test_labels, decoder, "none", workers)
    return train, test, len(classes)


def read_imagenet(folder: Path, size: int, workers: int) -> tuple[Streamed, Streamed, int]:
    """Return training set, validation set and number of classes of an ImageNet-like folder.

    The layout is train/<class>/* and val/<class>/*, as `torchvision.datasets.ImageFolder` reads
    it, with any number of classes.

    Raises:
        FileNotFoundError: train or val is missing, or a class has no image.
        ValueError: the two have different classes.
    """
    from torchvision.datasets import ImageFolder

    sets = []
    for part in ("train", "val"):
        if not (folder / part).is_dir():
            raise FileNotFoundError(
                f"imagenet was not found: there is no folder {part} in {folder}, "
                "with a folder of images for each class"
            )
        try:
            sets.append(ImageFolder(os.fspath(folder / part)))
        except FileNotFoundError as error:
            reason = str(error).split(". ")[0]
            raise FileNotFoundError(f"imagenet in {folder / part} is unusable: {reason}") from error
    train, test = sets
    if train.classes != test.classes:
        only = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(
            f"imagenet in {folder} has {len(train.classes)} classes in train and "
            f"{len(test.classes)} in val but must have the same in both; {only[0]!r} is in one only"
        )
    decoder = Decoder(size, round(size * RESIZE_FACTOR))
    parts = []
    for found, augment in ((train, RESIZED_CROP), (test, "none")):
        files, labels = [path for path, _ in found.samples], torch.tensor(found.targets)
        parts.append(Streamed(files, labels, decoder, augment, workers))
    return parts[0], parts[1], len(train.classes)
