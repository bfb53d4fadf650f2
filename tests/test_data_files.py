"""Data sets read from files: idx, SVHN's .mat, Tiny-ImageNet, ImageNet; damaged ones are named."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import SVHN, ImageFolder
from torchvision.transforms import v2

from fastard import data
from fastard.data.idx import OPENERS, TEST, TRAIN

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)
    )


def write_mnist(folder: Path, suffix: str = "", count: int = 12) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for images, labels in (TRAIN, TEST):
        arrays[images] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[labels] = rng.integers(0, 10, count, dtype=np.uint8)
    for name, array in arrays.items():
        (folder / f"{name}{suffix}").write_bytes(PACK[suffix](idx(array)))
    return arrays


@pytest.mark.parametrize("folder", ["", "MNIST/raw"])
@pytest.mark.parametrize("suffix", sorted(OPENERS))
def test_mnist_files_of_any_packing_in_either_place(
    tmp_path: Path, folder: str, suffix: str
) -> None:
    arrays = write_mnist(tmp_path / folder, suffix)
    splits = data.load("mnist", tmp_path, val=2)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (10, 2, 12)
    assert torch.equal(splits.test.x[:, 0], torch.from_numpy(arrays[TEST[0]]))
    assert splits.test.y.tolist() == arrays[TEST[1]].tolist()
    assert (splits.num_classes, splits.in_channels, splits.image_size) == (10, 1, 28)


@pytest.mark.parametrize(
    ("name", "suffix", "damage", "message"),
    [
        (TRAIN[0], "", lambda b: b[:-1], "has 9423 bytes but must have 9424 for 12 x 28 x 28"),
        (TRAIN[0], "", lambda b: b"\0\0\7" + b[3:], "does not begin as an idx file"),
        (TEST[0], "", lambda b: b[:7], "does not begin as an idx file of bytes in 3 dimensions"),
        (TRAIN[0], ".gz", lambda b: b[:-20], "is damaged: "),
        (TRAIN[0], ".xz", lambda b: b[:50] + b"\xff\xff" + b[52:], "is damaged: "),
        (TEST[1], "", lambda b: b[:-1] + b"\x0a", "holds the label 10, but there are 10 classes"),
    ],
)  # fmt: skip
def test_a_damaged_mnist_file_is_named(tmp_path: Path, name, suffix, damage, message) -> None:
    write_mnist(tmp_path, suffix)
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        data.load("mnist", tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_mnist_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / TRAIN[1]).write_bytes(idx(np.zeros(11, np.uint8)))
    with pytest.raises(ValueError, match="holds 12 images, but .*labels-idx1-ubyte holds 11"):
        data.load("mnist", tmp_path)


@pytest.fixture
def svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """Files as SVHN's, with their md5 in the place of the published ones."""
    x = np.random.default_rng(1).integers(0, 256, (32, 32, 3, 7), dtype=np.uint8)
    y = np.array([[10], [1], [2], [3], [10], [9], [5]], dtype=np.uint8)
    listed = {}
    for split, (url, name, _) in SVHN.split_list.items():
        savemat(tmp_path / name, {"X": x, "y": y})
        listed[split] = [url, name, hashlib.md5((tmp_path / name).read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", listed)
    return tmp_path, x


def test_svhn(svhn: tuple[Path, np.ndarray]) -> None:
    root, x = svhn
    splits = data.load("svhn", root)
    assert torch.equal(splits.train.x, torch.from_numpy(x.transpose(3, 2, 0, 1).copy()))
    assert splits.train.y.tolist() == [0, 1, 2, 3, 0, 9, 5]
    assert (splits.num_classes, splits.in_channels, splits.image_size) == (10, 3, 32)
    assert (splits.train.augment, splits.test.augment) == ("crop", "none")
    (root / "test_32x32.mat").write_bytes(b"other bytes")
    with pytest.raises(ValueError, match="test_32x32.mat is damaged"):
        data.load("svhn", root)
    (root / "train_32x32.mat").unlink()
    with pytest.raises(FileNotFoundError, match="no train_32x32.mat in .*--download"):
        data.load("svhn", root)


def picture(path: Path, width: int, height: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(path, "JPEG", quality=95)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-imagenet-200"
    wnids = ["n3", "n1", "n2"]
    for number, wnid in enumerate(wnids):
        for i in range(4):
            picture(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 64, 64, 9 * number + i)
    lines = []
    for i, wnid in enumerate(["n2", "n1", "n3", "n2"]):
        picture(folder / "val" / "images" / f"val_{i}.JPEG", 64, 64, 100 + i)
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path


def test_tiny_imagenet_in_memory_and_streamed(tiny: Path) -> None:
    kept = data.load("tiny-imagenet", tiny, val=3, workers=0)
    streamed = data.load("tiny-imagenet", tiny, val=3, workers=0, streamed=True)
    assert isinstance(kept.train, data.Images)
    assert isinstance(streamed.train, data.Streamed)
    folder = ImageFolder(str(tiny / "tiny-imagenet-200" / "train"))
    everything = torch.cat([kept.train.y, kept.val.y])
    assert sorted(everything.tolist()) == sorted(folder.targets)
    for splits in (kept, streamed):
        assert (splits.num_classes, splits.in_channels, splits.image_size) == (3, 3, 64)
        assert splits.test.y.tolist() == [1, 0, 2, 1]
        assert splits.val.y.tolist() == [0, 1, 2]
    first = v2.functional.pil_to_tensor(
        Image.open(tiny / "tiny-imagenet-200" / "val" / "images" / "val_0.JPEG")
    )
    assert torch.equal(kept.test.x[0], first)
    assert torch.equal(kept.test.float(), streamed.test.float())
    passes = [
        list(s.train.batches(4, shuffle=True, generator=torch.Generator().manual_seed(1)))
        for s in (kept, streamed)
    ]
    for ours, theirs in zip(*passes, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("train/n1/images/n1_2.JPEG", "half", ValueError, "n1_2.JPEG is damaged .*truncated"),
        ("train/n1/images/n1_2.JPEG", "small", ValueError, "is 63 x 64 pixels but must be 64 x 64"),
        ("val/images/val_1.JPEG", None, FileNotFoundError, "there is no file .*val_1.JPEG"),
        ("wnids.txt", None, FileNotFoundError, "there is no wnids.txt in .*tiny-imagenet-200.zip"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn9\n", ValueError, "line 1 names the class 'n9'"),
        ("wnids.txt", b"n1 n2 n3 n4", FileNotFoundError, "no training image of n4"),
    ],
)  # fmt: skip
def test_a_damaged_tiny_imagenet(tiny: Path, file, content, error, message) -> None:
    path = tiny / "tiny-imagenet-200" / file
    if content is None:
        path.unlink()
    elif content == "half":
        path.write_bytes(path.read_bytes()[:-400])
    elif content == "small":
        picture(path, 63, 64, 0)
    else:
        path.write_bytes(content)
    with pytest.raises(error, match=message) as raised:
        data.load("tiny-imagenet", tiny, workers=0)
    assert str(path.parent if path.name == "wnids.txt" else path) in str(raised.value) or (
        content == b"n1 n2 n3 n4"
    )
    assert "\n" not in str(raised.value)


def test_imagenet_folder_and_its_refusals(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2)):
        for wnid in ("a", "b"):
            for i in range(count):
                picture(tmp_path / part / wnid / f"{i}.JPEG", 50, 40, i)
    splits = data.load("imagenet", tmp_path, image_size=28, workers=0)
    assert (splits.num_classes, splits.in_channels, splits.image_size) == (2, 3, 28)
    assert (len(splits.train), len(splits.test)) == (6, 4)
    assert (splits.train.augment, splits.test.augment) == ("resized-crop-flip", "none")
    whole = v2.Compose([v2.Resize(32), v2.CenterCrop(28)])
    expected = whole(Image.open(tmp_path / "val" / "b" / "1.JPEG"))
    expected = v2.functional.pil_to_tensor(expected).float() / 255
    torch.testing.assert_close(splits.test.float(torch.tensor([3]))[0], expected)
    picture(tmp_path / "val" / "c" / "0.JPEG", 50, 40, 0)
    with pytest.raises(ValueError, match="2 classes in train and 3 in val .*'c' is in one only"):
        data.load("imagenet", tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder train in "):
        data.load("imagenet", tmp_path / "val")
    (tmp_path / "train" / "z").mkdir()
    with pytest.raises(FileNotFoundError, match="train is unusable: .* classes z"):
        data.load("imagenet", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "svhn"}, r"root \(--data-root\) must be given for svhn"),
        ({"name": "digits", "image_size": 8}, "image_size is 8 but must be left out: digits has"),
        ({"name": "imagenet", "image_size": 0}, "image_size is 0 but must be at least 1"),
        ({"name": "digits", "streamed": True}, "streamed is True but must be False for digits"),
        ({"name": "digits", "workers": -1}, "workers is -1 but must be >= 0"),
        ({"name": "imagenet", "extra": "x.npz"}, "extra is given but must be left out where"),
    ],
)
def test_arguments_that_a_data_set_has_no_use_for(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(**options)
