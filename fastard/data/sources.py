"""Where the images come from: torchvision's folders, and the digits that scikit-learn bundles."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

DIGITS_TEST = 500


class Arrays(NamedTuple):
    """Images uint8 [N, C, H, W] and labels int64 [N], on the CPU."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Source:
    """A dataset: its torchvision class, its folder below root, and how training augments it."""

    torchvision_name: str | None
    folder: str
    num_classes: int
    augment: str


SOURCES = {
    "cifar10": Source("CIFAR10", "cifar-10-batches-py", 10, "crop-flip"),
    "cifar100": Source("CIFAR100", "cifar-100-python", 100, "crop-flip"),
    "mnist": Source("MNIST", "MNIST/raw", 10, "none"),
    "digits": Source(None, "", 10, "none"),
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
        nearest = difflib.get_close_matches(name.lower(), SOURCES, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"data is {name!r} but must be one of {', '.join(SOURCES)}{hint}")
    return SOURCES[name]


def read_torchvision(
    name: str, root: str | os.PathLike[str] | None, *, download: bool
) -> tuple[Arrays, Arrays]:
    """Read the training and test set of `name` from `root` through torchvision.

    Raises:
        ValueError: no root is given, or a file there is damaged.
        FileNotFoundError: a file is missing and `download` is off.
    """
    # Imported here, because torchvision takes longer to import than the rest of the library.
    from torchvision import datasets

    source = SOURCES[name]
    if root is None:
        raise ValueError(
            f"root (--data-root) must be given for {name}: the folder that holds {source.folder}, "
            "or that a download may put it in"
        )
    dataset = getattr(datasets, str(source.torchvision_name))
    folder = Path(root) / source.folder
    if not download:
        _require_files(name, dataset, folder)
    try:
        train, test = (dataset(root, train=train, download=download) for train in (True, False))
    except (RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"the {name} files in {folder} are damaged ({error}): "
            "delete them and load with download=True (--download)"
        ) from error
    return _arrays(train), _arrays(test)


def _require_files(name: str, dataset: Any, folder: Path) -> None:
    if name == "mnist":
        files = [Path(archive).stem for archive, _ in dataset.resources]
        archive = dataset.mirrors[0]
    else:
        listed = [*dataset.train_list, *dataset.test_list]
        files = [file for file, _ in listed] + [dataset.meta["filename"]]
        archive = dataset.url
    for file in files:
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"{name} was not found: there is no {file} in {folder}; load with download=True "
                f"(--download), or unpack the files of {archive} there"
            )


def _arrays(dataset: Any) -> Arrays:
    x = torch.as_tensor(dataset.data)
    # MNIST is [N, H, W], CIFAR [N, H, W, C].
    x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
    return Arrays(x.contiguous(), torch.as_tensor(dataset.targets, dtype=torch.int64))


def read_digits() -> Arrays:
    """Return scikit-learn's 1,797 handwritten digits, 8x8, their 17 grey levels over 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.as_tensor(digits.images).mul(255 / 16).round().to(torch.uint8)
    return Arrays(x.unsqueeze(1).contiguous(), torch.as_tensor(digits.target, dtype=torch.int64))
