"""Where the images come from: torchvision's folders, and the digits that scikit-learn bundles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastard.data import idx
from fastard.kinds import unknown

DIGITS_TEST = 500


class Arrays(NamedTuple):
    """Images uint8 [N, C, H, W] and labels int64 [N], on the CPU."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Source:
    """A dataset: its folder below root, its classes, and how training augments it.

    `num_classes` 0 means that the folder tells. A flipped digit may be another one, so pictures of
    digits are not flipped.
    """

    folder: str
    num_classes: int
    augment: str
    torchvision_name: str | None = None


SOURCES = {
    "cifar10": Source("cifar-10-batches-py", 10, "crop-flip", "CIFAR10"),
    "cifar100": Source("cifar-100-python", 100, "crop-flip", "CIFAR100"),
    "svhn": Source("", 10, "crop", "SVHN"),
    "tiny-imagenet": Source("tiny-imagenet-200", 0, "crop-flip"),
    "imagenet": Source("", 0, "resized-crop-flip"),
    "mnist": Source("MNIST/raw", 10, "none", "MNIST"),
    "digits": Source("", 10, "none"),
}


def names() -> list[str]:
    """Return the datasets that `load` knows."""
    return list(SOURCES)


def find(name: str) -> Source:
    """Return the source called `name`.

    Raises:
        ValueError: there is none of this name; all are listed.
    """
    if name not in SOURCES:
        raise unknown("data", name, SOURCES)
    return SOURCES[name]


def require_root(name: str, root: str | os.PathLike[str] | None) -> Path:
    """Return `root` as a path.

    Raises:
        ValueError: no root is given.
    """
    if root is None:
        held = f"the folder that holds {find(name).folder or 'its files'}"
        raise ValueError(f"root (--data-root) must be given for {name}: {held}")
    return Path(root)


def read_torchvision(name: str, root: Path, *, download: bool) -> tuple[Arrays, Arrays]:
    """Read the training and test set of CIFAR-10, CIFAR-100 or SVHN through torchvision.

    Raises:
        ValueError: a file there is damaged: its md5 is not that of the published one.
        FileNotFoundError: a file is missing and `download` is off.
    """
    # Imported here, because torchvision takes longer to import than the rest of the library.
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    dataset = getattr(datasets, str(SOURCES[name].torchvision_name))
    files = list(_files(name, dataset, root / SOURCES[name].folder))
    if not download:
        for path, _, archive in files:
            if not path.is_file():
                raise _missing(name, path, archive)
    try:
        train, test = (
            dataset(os.fspath(root), download=download, **choice)
            for choice in (
                ({"split": "train"}, {"split": "test"})
                if name == "svhn"
                else ({"train": True}, {"train": False})
            )
        )
    except (RuntimeError, EOFError, ValueError) as error:
        damaged = [path for path, md5, _ in files if not check_integrity(os.fspath(path), md5)]
        raise ValueError(
            f"{damaged[0] if damaged else root} is damaged ({error}): "
            "delete it and load with download=True (--download)"
        ) from error
    return _arrays(train), _arrays(test)


def _files(name: str, dataset: Any, folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Path, md5 and origin of every file of a dataset of torchvision."""
    if name == "svhn":
        for split in ("train", "test"):
            url, file, md5 = dataset.split_list[split]
            yield folder / file, md5, url
        return
    for file, md5 in (*dataset.train_list, *dataset.test_list):
        yield folder / file, md5, dataset.url
    yield folder / dataset.meta["filename"], dataset.meta["md5"], dataset.url


def _missing(name: str, path: Path, archive: str) -> FileNotFoundError:
    verb = "put" if archive.endswith(path.name) else "unpack the files of"
    return FileNotFoundError(
        f"{name} was not found: there is no {path.name} in {path.parent}; load with download=True "
        f"(--download), or {verb} {archive} there"
    )


def read_mnist(root: Path, *, download: bool) -> tuple[Arrays, Arrays]:
    """Read MNIST's idx files, plain, .gz or .xz, from `root/MNIST/raw` or from `root` itself.

    Raises:
        ValueError: a file is damaged.
        FileNotFoundError: a file is missing and `download` is off.
    """
    found = []
    for names in (idx.TRAIN, idx.TEST):
        paths = [idx.find(root, SOURCES["mnist"].folder, name) for name in names]
        if None in paths:
            from torchvision import datasets

            if not download:
                missing = root / SOURCES["mnist"].folder / names[paths.index(None)]
                raise _missing("mnist", missing, datasets.MNIST.mirrors[0])
            datasets.MNIST(os.fspath(root), download=True)
            paths = [idx.find(root, SOURCES["mnist"].folder, name) for name in names]
        images, labels = (Path(str(path)) for path in paths)
        x, y = idx.read_pair(images, labels, SOURCES["mnist"].num_classes)
        found.append(Arrays(torch.from_numpy(x).unsqueeze(1), torch.from_numpy(y).long()))
    return found[0], found[1]


def _arrays(dataset: Any) -> Arrays:
    if not hasattr(dataset, "targets"):
        return Arrays(torch.from_numpy(dataset.data), torch.from_numpy(dataset.labels).long())
    x = torch.as_tensor(dataset.data).permute(0, 3, 1, 2)
    return Arrays(x.contiguous(), torch.as_tensor(dataset.targets, dtype=torch.int64))


def read_digits() -> Arrays:
    """Return scikit-learn's 1,797 handwritten digits, 8x8, their 17 grey levels over 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.as_tensor(digits.images).mul(255 / 16).round().to(torch.uint8)
    return Arrays(x.unsqueeze(1).contiguous(), torch.as_tensor(digits.target, dtype=torch.int64))
