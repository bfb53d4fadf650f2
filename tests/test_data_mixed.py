"""Synthetic images from .npz beside original ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastard import data
from fastard.data.mixed import mix
from fastard.data.npz import open_array


@pytest.fixture
def original() -> data.Images:
    """40 images of one grey value each, their position."""
    x = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 8, 8).contiguous()
    return data.Images(x, torch.arange(40) % 4, "crop-flip")


def write(path: Path, count: int = 50, save=np.savez, **changes) -> Path:
    """Images of grey values from 100 on; labels 0, 1, 2, 3, 0, ..."""
    x = np.arange(100, 100 + count, dtype=np.uint8)[:, None, None, None] * np.ones((8, 8, 3), "u1")
    save(path, **{"image": x.astype("u1"), "label": np.arange(count) % 4, **changes})
    return path


@pytest.mark.parametrize(("save", "mapped"), [(np.savez, True), (np.savez_compressed, False)])
def test_arrays_are_mapped_where_they_are_stored_plainly(tmp_path: Path, save, mapped) -> None:
    path = write(tmp_path / "extra.npz", save=save)
    image = open_array(path, "image")
    assert isinstance(image, np.memmap) is mapped
    assert np.array_equal(image, np.load(path)["image"])
    assert np.array_equal(open_array(path, "label"), np.load(path)["label"])


def test_a_batch_has_its_share_of_original_images(original: data.Images, tmp_path: Path) -> None:
    mixed = mix(original, write(tmp_path / "extra.npz"), 4)
    assert (len(mixed), mixed.num_batches(10), mixed.share) == (90, 4, 0.3)
    batches = list(mixed.batches(10, shuffle=True, generator=torch.Generator().manual_seed(0)))
    assert len(batches) == 4
    used = []
    for batch in batches:
        assert batch.x.shape == (10, 3, 8, 8)
        own = batch.index < 40
        # floor(10 * 0.7) are synthetic.
        assert int(own.sum()) == 3
        used += batch.index[own].tolist()
        grey = torch.where(own, batch.index, batch.index + 60)
        # A crop shows zeros at the border at most.
        assert torch.equal((batch.x * 255).round().amax((1, 2, 3)).long(), grey)
        assert torch.equal(batch.y, torch.where(own, batch.index, batch.index - 40) % 4)
        assert batch.view.unique().numel() > 5
    assert len(set(used)) == len(used) == 12


@pytest.mark.parametrize("share", [0.3, 0.75, 1.0])
def test_a_pass_can_start_in_its_middle(
    original: data.Images, tmp_path: Path, share: float
) -> None:
    mixed = mix(original, write(tmp_path / "extra.npz"), 4, share)

    def run(**options) -> list[data.Batch]:
        generator = torch.Generator().manual_seed(3)
        return list(mixed.batches(16, shuffle=True, generator=generator, **options))

    whole = run()
    assert [len(b.x) for b in whole] == ([16, 16, 16] if share < 1 else [16, 16, 8])
    for start in range(4):
        for ours, expected in zip(run(start=start), whole[start:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    parts = zip(run(part=(0, 2)), run(part=(1, 2)), whole, strict=True)
    for *halves, expected in parts:
        for ours, theirs in zip(zip(*halves, strict=True), expected, strict=True):
            assert torch.equal(torch.cat(ours), theirs)


def test_load_mixes_what_is_left_for_training(tmp_path: Path) -> None:
    x = np.zeros((30, 8, 8, 1), np.uint8)
    path = write(tmp_path / "extra.npz", image=x, label=np.arange(30) % 10)
    splits = data.load("digits", val=97, extra=path, original_share=0.5)
    assert isinstance(splits.train, data.Mixed)
    assert (len(splits.train.original), len(splits.train), len(splits.val)) == (1200, 1230, 97)
    assert len(splits.train.first(64).original) == 64
    batch = next(splits.train.batches(64, shuffle=True))
    assert int((batch.index >= 1200).sum()) == 32
    assert (splits.num_classes, splits.in_channels, splits.image_size) == (10, 1, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((50, 8, 8, 3), np.float32)}, "extra images are float32 of shape"),
        ({"image": np.zeros((50, 32, 32, 3), np.uint8)}, r"but must be uint8 \[50, 8, 8, 3\]"),
        ({"image": np.zeros((49, 8, 8, 3), np.uint8)}, r"of shape \[49, 8, 8, 3\]"),
        ({"label": np.full(50, 4)}, "must be integers from 0 to 3"),
        ({"label": np.zeros(50)}, r"labels of .*extra.npz are float64 of shape \[50\]"),
        ({"label": np.zeros((50, 4), np.int64)}, "in one dimension"),
    ],
)
def test_a_file_that_does_not_fit(original, tmp_path: Path, changes, message) -> None:
    path = write(tmp_path / "extra.npz", **changes)
    with pytest.raises(ValueError, match=message) as error:
        mix(original, path, 4)
    assert "extra.npz" in str(error.value)


def test_a_missing_damaged_or_other_file(original: data.Images, tmp_path: Path) -> None:
    path = tmp_path / "extra.npz"
    with pytest.raises(FileNotFoundError, match="no .npz file at .*extra.npz"):
        mix(original, path, 4)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match="holds no array 'image', but only x"):
        mix(original, path, 4)
    whole = write(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="extra.npz is damaged or no .npz file"):
        mix(original, path, 4)
    with pytest.raises(ValueError, match="original_share is 0 but must be above 0 and at most 1"):
        mix(original, write(path), 4, 0)
