"""Batched crop and flip against the same done image by image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastard import data
from fastard.data.augment import (
    PAD,
    VIEWS,
    apply_views,
    decode_views,
    draw_views,
    encode_views,
)

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)


def one_by_one(x: Tensor, views: Tensor) -> Tensor:
    height, width = x.shape[2:]
    out = []
    for image, (crop_y, crop_x, flip) in zip(x, views.tolist(), strict=True):
        padded = F.pad(image, (4, 4, 4, 4))
        crop = padded[:, crop_y : crop_y + height, crop_x : crop_x + width]
        out.append(crop.flip(-1) if flip else crop)
    return torch.stack(out)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(162, 3, 32, 32), (9, 1, 5, 7), (4, 2, 1, 1)])
def test_every_view_is_what_cropping_and_flipping_one_image_gives(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    x = torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    views = torch.cartesian_prod(torch.arange(9), torch.arange(9), torch.arange(2))
    views = views[torch.randperm(162, generator=torch.Generator().manual_seed(1))[: shape[0]]]
    out = apply_views(x.to(device), views.to(device))
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert torch.equal(out.cpu(), one_by_one(x, views))


def test_input_is_left_alone_and_may_have_any_layout() -> None:
    x = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8)
    views = draw_views(6, "crop-flip", torch.Generator().manual_seed(0))
    before = x.clone()
    expected = one_by_one(x, views)
    for layout in (x, x.to(memory_format=torch.channels_last), x.flip(0).flip(0)):
        assert torch.equal(apply_views(layout, views), expected)
    assert torch.equal(x, before)


def test_identity_view_and_empty_batch() -> None:
    x = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(apply_views(x, draw_views(3, "none")), x)
    assert apply_views(x[:0], draw_views(0, "crop-flip")).shape == (0, 1, 8, 8)


def test_a_view_and_its_code() -> None:
    views = torch.cartesian_prod(torch.arange(9), torch.arange(9), torch.arange(2))
    assert encode_views(views).tolist() == list(range(VIEWS)) == list(range(162))
    assert torch.equal(decode_views(encode_views(views)), views)


def test_views_are_uniform() -> None:
    views = draw_views(16_200, "crop-flip", torch.Generator().manual_seed(0))
    counts = ((views[:, 0] * 9 + views[:, 1]) * 2 + views[:, 2]).bincount(minlength=162)
    # Chi-squared with 161 degrees of freedom has mean 161 and standard deviation 18.
    assert ((counts - 100) ** 2 / 100).sum() < 161 + 4 * 18
    assert views.dtype == torch.int64
    assert (views.min().item(), views.max().item()) == (0, 2 * PAD)


def test_views_of_a_kind() -> None:
    generator = torch.Generator().manual_seed(0)
    assert draw_views(50, "none", generator).unique(dim=0).tolist() == [[PAD, PAD, 0]]
    assert draw_views(50, "crop", generator)[:, 2].tolist() == [0] * 50
    with pytest.raises(ValueError, match="augment is 'flip' but must be one of none, crop"):
        draw_views(1, "flip")


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_batches_hold_the_pixels_that_their_views_describe(device: str) -> None:
    x = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8)
    images = data.Images(x, torch.arange(50), "crop-flip").to(device)

    def run(batch_size: int, seed: int) -> dict[int, list[int]]:
        seen: dict[int, list[int]] = {}
        generator = torch.Generator().manual_seed(seed)
        for batch in images.batches(batch_size, shuffle=True, generator=generator):
            index, view = batch.index.cpu(), decode_views(batch.view.cpu())
            assert torch.equal((batch.x.cpu() * 255).round(), one_by_one(x[index], view).float())
            assert torch.equal(batch.y, batch.index)
            seen.update(zip(index.tolist(), map(tuple, view.tolist()), strict=True))
        return seen

    views = run(8, seed=0)
    assert sorted(views) == list(range(50))
    assert views == run(13, seed=0)
    assert views != run(8, seed=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_do_not_depend_on_the_device() -> None:
    splits = data.load("digits")
    batches = [
        images.batches(
            64, shuffle=True, augment="crop-flip", generator=torch.Generator().manual_seed(0)
        )
        for images in (splits.train, splits.train.to("cuda"))
    ]
    for on_cpu, on_cuda in zip(*batches, strict=True):
        for one, two in zip(on_cpu, on_cuda, strict=True):
            assert torch.equal(one, two.cpu())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_generator_on_the_device_is_refused() -> None:
    images = data.load("digits").test
    with pytest.raises(ValueError, match="generator is on cuda.* but must be on the CPU"):
        images.batches(4, generator=torch.Generator("cuda"))
