"""`fastard.data`: what is loaded, how it is divided, and what batches hold."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.transforms.functional import to_tensor

from fastard import data
from fastard.data.splits import stratified

DATA = os.environ.get("FASTARD_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="FASTARD_DATA does not name the data folder")


@pytest.fixture(scope="module")
def cifar10_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cifar10")
    spec = importlib.util.spec_from_file_location("unpack_cifar", Path(DATA) / "unpack_cifar.py")
    unpack_cifar = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack_cifar)
    with contextlib.redirect_stdout(io.StringIO()):
        zips = sorted((Path(DATA) / "cifar10").glob("*.zip"))
        unpack_cifar.rebuild(root / "cifar-10-batches-py", zips)
    return root


def md5(images: data.Images) -> str:
    return hashlib.md5(images.x.permute(0, 2, 3, 1).contiguous().numpy().tobytes()).hexdigest()


@pytest.fixture
def images() -> data.Images:
    """23 images of 3x8x6, each pixel different in most, labels 0, 1, 2, ..."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (23, 3, 8, 6), generator=generator, dtype=torch.uint8)
    return data.Images(x, torch.arange(23))


@needs_data
def test_cifar10_is_the_official_one(cifar10_root: Path) -> None:
    splits = data.load("cifar10", root=cifar10_root)
    assert md5(splits.train) == "17e2cb5a4119d89a4a13e02b91701bff"
    assert md5(splits.test) == "6d2714505047e13831cd876923568712"
    assert splits.train.y.bincount().tolist() == [5000] * 10
    assert splits.test.y[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert splits.train.x.is_contiguous()
    assert (splits.num_classes, splits.in_channels, splits.image_size) == (10, 3, 32)
    assert (splits.name, splits.val) == ("cifar10", None)
    assert (splits.train.augment, splits.test.augment) == ("crop-flip", "none")


@needs_data
def test_cifar10_held_out_part(cifar10_root: Path) -> None:
    splits = data.load("cifar10", root=str(cifar10_root), val=1000, seed=1)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (49_000, 1000, 10_000)
    assert splits.val.y.bincount().tolist() == [100] * 10
    assert (splits.train.augment, splits.val.augment) == ("crop-flip", "none")


@needs_data
def test_cifar10_with_a_missing_or_damaged_file(cifar10_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (cifar10_root / "cifar-10-batches-py").iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "test_batch").unlink()
    with pytest.raises(FileNotFoundError, match="there is no test_batch in .*cifar-10-batches-py"):
        data.load("cifar10", root=tmp_path)
    (folder / "test_batch").write_bytes(b"not the official bytes")
    with pytest.raises(ValueError, match="cifar-10-batches-py/test_batch is damaged"):
        data.load("cifar10", root=tmp_path)


@needs_data
def test_mnist() -> None:
    splits = data.load("mnist", root=Path(DATA) / "mnist", val=500)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (59_500, 500, 10_000)
    assert splits.test.x.shape == (10_000, 1, 28, 28)
    assert splits.test.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert (splits.in_channels, splits.image_size, splits.train.augment) == (1, 28, "none")


def test_digits_need_no_files() -> None:
    splits = data.load()
    original = load_digits()
    assert splits.name == "digits"
    assert (splits.num_classes, splits.in_channels, splits.image_size) == (10, 1, 8)
    assert (len(splits.train), splits.val, len(splits.test)) == (1297, None, 500)
    assert splits.test.x.dtype == torch.uint8
    assert splits.test.y.bincount().tolist() == [50, 51, 49, 51, 50, 51, 50, 50, 48, 50]
    everything = torch.cat([splits.train.x, splits.test.x]).flatten(1)
    expected = torch.as_tensor(original.images / 16 * 255).round().to(torch.uint8).flatten(1)
    assert sorted(everything.tolist()) == sorted(expected.tolist())
    assert int(everything.max()) == 255


def test_digits_test_images_never_change() -> None:
    one, two = data.load("digits", seed=1, val=100), data.load("digits", seed=2)
    assert torch.equal(one.test.x, two.test.x)
    # A published number holds for these images only.
    assert md5(one.test) == "6ef6ea186e706643305ec7dcf903c3bc"


def test_held_out_part_is_stratified_fixed_by_seed_and_disjoint() -> None:
    whole, one, again = data.load(), data.load(val=200, seed=1), data.load(val=200, seed=1)
    other = data.load(val=200, seed=2)
    assert torch.equal(one.val.x, again.val.x)
    assert torch.equal(one.train.x, again.train.x)
    assert not torch.equal(one.val.x, other.val.x)
    assert torch.equal(one.test.x, whole.test.x)
    shares = one.val.y.bincount() / whole.train.y.bincount()
    assert (shares - 200 / 1297).abs().max() < 1 / 100
    rows = [one.train.x.flatten(1), one.val.x.flatten(1)]
    parts = sorted(torch.cat(rows).tolist())
    assert parts == sorted(whole.train.x.flatten(1).tolist())


@pytest.mark.parametrize("count", [0, 1, 7, 40, 99, 100])
def test_stratified_positions(count: int) -> None:
    y = torch.tensor([0] * 50 + [1] * 30 + [3] * 20)[torch.randperm(100)]
    picked, rest = stratified(y, count, seed=4)
    assert len(picked) == count
    assert sorted(picked.tolist() + rest.tolist()) == list(range(100))
    assert picked.tolist() == sorted(picked.tolist())
    per_class = y[picked].bincount(minlength=4)
    share = torch.tensor([0.5, 0.3, 0.0, 0.2]) * count
    assert ((per_class - share).abs() < 1).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: data.load("cifar"), ValueError, "unknown data 'cifar' .*; known: cifar10, "),
        (lambda p: data.load("CIFAR-100"), ValueError, "unknown data 'CIFAR-100'"),
        (lambda p: data.load("cifar_100"), ValueError, "did you mean 'cifar100'"),
        (lambda p: data.load("cifar10"), ValueError, r"root \(--data-root\) must be given"),
        (lambda p: data.load(val=-1), ValueError, "val is -1 but must be from 0 to 1296"),
        (lambda p: data.load(val=1297), ValueError, "val is 1297 but must be from 0 to 1296"),
        (
            lambda p: data.load("cifar10", p),
            FileNotFoundError,
            r"no data_batch_1 in .*cifar-10-batches-py; .*--download.*cifar-10-python.tar.gz",
        ),
        (
            lambda p: data.load("cifar100", p),
            FileNotFoundError,
            r"no train in .*cifar-100-python; .*cifar-100-python.tar.gz",
        ),
        (
            lambda p: data.load("mnist", p / "none"),
            FileNotFoundError,
            r"no train-images-idx3-ubyte in .*MNIST/raw; .*https://",
        ),
    ],
)
def test_load_refuses(
    tmp_path: Path, call: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_can_all_be_asked_for(tmp_path: Path) -> None:
    assert data.names() == [
        *("cifar10", "cifar100", "svhn", "tiny-imagenet", "imagenet", "mnist", "digits")
    ]


def test_float_is_torchvisions_to_tensor(images: data.Images) -> None:
    expected = torch.stack([to_tensor(x.permute(1, 2, 0).numpy()) for x in images.x])
    assert torch.equal(images.float(), expected)
    index = torch.tensor([4, 2])
    assert torch.equal(images.float(index), expected[index])
    assert torch.equal(images.float(slice(3, 5)), expected[3:5])


def test_first_and_select(images: data.Images) -> None:
    assert images.first(5).y.tolist() == [0, 1, 2, 3, 4]
    assert len(images.first(99)) == 23
    assert len(images.first(0)) == 0
    chosen = images.select(torch.tensor([7, 3]), augment="crop")
    assert chosen.y.tolist() == [7, 3]
    assert torch.equal(chosen.x[1], images.x[3])
    assert chosen.augment == "crop"
    with pytest.raises(ValueError, match="n is -1"):
        images.first(-1)


def test_batches_in_dataset_order(images: data.Images) -> None:
    batches = list(images.batches(5))
    assert [len(b.y) for b in batches] == [5, 5, 5, 5, 3]
    assert torch.equal(torch.cat([b.index for b in batches]), torch.arange(23))
    assert torch.equal(torch.cat([b.x for b in batches]), images.float())
    assert {code for b in batches for code in b.view.tolist()} == {(4 * 9 + 4) * 2}
    assert batches[0].x.dtype == torch.float32
    assert batches[0].x.is_contiguous()


@pytest.mark.parametrize(
    ("size", "whole", "full"), [(1, 23, 23), (5, 5, 4), (23, 1, 1), (24, 1, 0)]
)
def test_number_of_batches(images: data.Images, size: int, whole: int, full: int) -> None:
    for drop_last, expected in ((False, whole), (True, full)):
        assert images.num_batches(size, drop_last=drop_last) == expected
        assert len(list(images.batches(size, drop_last=drop_last))) == expected
    assert list(images.first(0).batches(size)) == []


def test_shuffled_batches_are_fixed_by_the_generator(images: data.Images) -> None:
    def index(seed: int, size: int = 4) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        batches = list(images.batches(size, shuffle=True, generator=generator))
        for batch in batches:
            assert torch.equal(batch.y, batch.index)
            assert torch.equal(batch.x, images.float(batch.index))
        return torch.cat([b.index for b in batches]).tolist()

    assert index(0) == index(0, size=9) != index(1)
    assert sorted(index(0)) == list(range(23))


@pytest.mark.parametrize("start", [0, 1, 3, 5, 6])
def test_a_pass_can_start_in_its_middle(images: data.Images, start: int) -> None:
    def run(**options: int) -> tuple[list[data.Batch], torch.Tensor]:
        generator = torch.Generator().manual_seed(4)
        batches = images.batches(
            4, shuffle=True, augment="crop-flip", generator=generator, **options
        )
        return list(batches), generator.get_state()

    (whole, state), (rest, state_of_rest) = run(), run(start=start)
    assert len(whole) == 6
    assert len(rest) == 6 - start
    assert torch.equal(state, state_of_rest)
    for ours, expected in zip(rest, whole[start:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_without_a_generator_the_global_one_is_used(images: data.Images) -> None:
    torch.manual_seed(3)
    expected = torch.randperm(23)
    torch.manual_seed(3)
    assert torch.equal(next(images.batches(23, shuffle=True)).index, expected)


def test_random_numbers_are_drawn_at_the_call(images: data.Images) -> None:
    torch.manual_seed(3)
    first, second = (images.batches(23, shuffle=True) for _ in range(2))
    torch.manual_seed(3)
    late, early = next(second).index, next(first).index
    assert torch.equal(early, torch.randperm(23))
    assert torch.equal(late, torch.randperm(23))


def test_batches_augment_as_the_dataset_says_unless_told(images: data.Images) -> None:
    train = data.Images(images.x, images.y, "crop-flip")
    generator = torch.Generator().manual_seed(0)
    assert next(train.batches(23, generator=generator)).view.unique().numel() > 10
    assert torch.equal(next(train.batches(23, augment="none")).x, images.float())
    crops = next(images.batches(23, augment="crop", generator=generator)).view
    assert (crops % 2).sum() == 0
    assert crops.unique().numel() > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0 but must be >= 1"),
        ({"batch_size": 4, "start": 7}, "start is 7 but must be from 0 to 6"),
        ({"batch_size": 4, "start": -1}, "start is -1 but must be from 0 to 6"),
        ({"batch_size": 4, "augment": "mixup"}, "augment is 'mixup' but must be one of none, crop"),
    ],
)
def test_batches_refuse_at_the_call(images: data.Images, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images.batches(**options)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), "images are torch.float32"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "images are"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "labels"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), "labels are torch.float32"),
        (
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8, device="meta"),
            torch.zeros(2, dtype=torch.int64),
            "images are on meta and labels on cpu",
        ),
    ],
)
def test_images_refuse(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.Images(x, y)
